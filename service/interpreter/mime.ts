import type { ResultFields } from '../../protocol/interpreter';

/** MIME types that have a field of their own; everything else goes to `extra` under its name. */
const TEXT_FIELDS = {
  'text/plain': 'text',
  'text/html': 'html',
  'text/markdown': 'markdown',
  'image/svg+xml': 'svg',
  'image/png': 'png',
  'image/jpeg': 'jpeg',
  'application/pdf': 'pdf',
  'text/latex': 'latex',
  'application/javascript': 'javascript',
} as const;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Notebooks may spell a text as a list of lines; anything else that isn't a string becomes its JSON. */
function toText(value: unknown): string {
  if (typeof value === 'string') return value;
  if (Array.isArray(value) && value.every((line) => typeof line === 'string')) return value.join('');
  return JSON.stringify(value);
}

/** Cuts one pair of equal quotes, as E2B does, so that a string shows as its characters. Nothing is unescaped. */
function withoutQuotes(text: string): string {
  const quote = text[0];
  const quoted = text.length >= 2 && (quote === "'" || quote === '"') && text.endsWith(quote);
  return quoted ? text.slice(1, -1) : text;
}

/**
 * Turns a MIME bundle into the fields of a result. Pure and total: whatever a kernel puts into a bundle lands in a
 * field or in `extra`, except null, which means absent. Bundle metadata has no place on this wire.
 */
export function toResultFields(bundle: Record<string, unknown>): ResultFields {
  const fields: Omit<ResultFields, 'extra'> = {};
  const extra: Record<string, unknown> = {};
  for (const [mime, value] of Object.entries(bundle)) {
    if (value === null || value === undefined) continue;
    if (Object.hasOwn(TEXT_FIELDS, mime)) {
      const text = toText(value);
      fields[TEXT_FIELDS[mime as keyof typeof TEXT_FIELDS]] =
        mime === 'text/plain' ? withoutQuotes(text) : text;
    } else if (mime === 'application/json') fields.json = value;
    else if (mime === 'e2b/data' && isObject(value)) fields.data = value;
    else if (mime === 'e2b/chart' && isObject(value)) fields.chart = value;
    // Not by assignment: a MIME name may be `__proto__`.
    else Object.defineProperty(extra, mime, { value, enumerable: true, configurable: true });
  }
  return { ...fields, extra };
}
