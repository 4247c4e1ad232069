import { CREATE_ROWS } from './creates';
import { figure } from './figures';
import type { Figures } from './figures';
import { formatMs, markdownTable } from './statistics';

/**
 * Latencies that another system's own guide gives for itself, in milliseconds, beside the rows here that do the same.
 * Theirs are quoted and were not measured: on which machine, and whether it is a middle or a best value, they don't say.
 */
const QUOTED = [
  { theirs: 'session creation', local: 50, remote: 120, row: CREATE_ROWS.pooled },
  { theirs: 'simple command', local: 15, remote: 45, row: 'command' },
  { theirs: 'file upload (1 MB)', local: 80, remote: 150, row: '1 MB up' },
  { theirs: 'file download (1 MB)', local: 75, remote: 140, row: '1 MB down' },
  { theirs: 'list files', local: 10, remote: 35, row: 'list 1,000 files' },
] as const;

/** Empty when this run measured none of it. */
export function quotedTable(figures: Figures): string[] {
  const rows = QUOTED.flatMap(({ theirs, local, remote, row }) => {
    const ours = figures[figure(row, 'Cellbox', 'p50')];
    return ours === undefined
      ? []
      : [
          [
            `${theirs}: our \`${row}\``,
            formatMs(ours),
            String(local),
            String(remote),
            ours < remote ? 'yes' : 'NO',
          ],
        ];
  });
  if (rows.length === 0) return [];
  return [
    markdownTable(
      [
        'p50 in ms',
        'Cellbox, over HTTP',
        'theirs, in process',
        'theirs, over HTTP',
        'below theirs over HTTP',
      ],
      rows,
    ),
    '',
    'Theirs: what the guide of a session sandbox (“Enhanced Sandbox V2”) states for itself, quoted and not measured.',
    '',
  ];
}
