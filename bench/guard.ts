import { z } from 'zod';
import type { Figures } from './figures';

/** One ratio that must not grow. Ratios of one run, because milliseconds tell more about the machine than about us. */
const Rule = z.strictObject({
  name: z.string().min(1),
  /** Names of figures: what is measured, over what it is compared with. */
  over: z.string().min(1),
  under: z.string().min(1),
  /** What it was when the rule was made, and how much more is put down to the machine. */
  measured: z.number().positive(),
  margin: z.number().min(1),
  reason: z.string().min(1),
});
export type Rule = z.infer<typeof Rule>;

const Rules = z.strictObject({ rules: z.array(Rule).min(1) });

/** Reads `guard.json`. @throws when it is not as it should be. */
export function parseRules(text: string): Rule[] {
  return Rules.parse(JSON.parse(text)).rules;
}

export function limitOf({ measured, margin }: Rule): number {
  return measured * margin;
}

/** The rows that the rules speak of: all that has to be measured. */
export function rowsOf(rules: readonly Rule[]): string[] {
  return [...new Set(rules.flatMap(({ over, under }) => [rowOf(over), rowOf(under)]))];
}

function rowOf(name: string): string {
  return name.split(' | ')[0] ?? name;
}

export interface Violation {
  rule: Rule;
  /** NaN when a figure is missing, which is one, too: a rule that checks nothing is none. */
  ratio: number;
}

/** The rules that these figures break. Pure. */
export function violations(rules: readonly Rule[], figures: Figures): Violation[] {
  return rules
    .map((rule) => ({
      rule,
      ratio: (figures[rule.over] ?? Number.NaN) / (figures[rule.under] ?? Number.NaN),
    }))
    .filter(({ rule, ratio }) => !(ratio <= limitOf(rule)));
}

/**
 * Measures, and measures once more what seems to have become slower: a violation is what both times show. A busy moment
 * of the machine is over by then; what is slow stays slow.
 */
export async function check(
  rules: readonly Rule[],
  measure: (rows: readonly string[]) => Promise<Figures>,
  say: (line: string) => void,
): Promise<Violation[]> {
  const first = await measure(rowsOf(rules));
  for (const rule of rules)
    say(describe({ rule, ratio: (first[rule.over] ?? NaN) / (first[rule.under] ?? NaN) }));
  const suspects = violations(rules, first).map(({ rule }) => rule);
  if (suspects.length === 0) return [];
  say(`measuring again: ${suspects.map(({ name }) => name).join(', ')}`);
  return violations(suspects, await measure(rowsOf(suspects)));
}

/** One line about one ratio. */
export function describe({ rule, ratio }: Violation): string {
  const limit = limitOf(rule).toFixed(2);
  return `${rule.name}: ${Number.isNaN(ratio) ? 'not measured' : `${ratio.toFixed(2)}×`} (limit ${limit}×: ${rule.measured}× and a margin of ${rule.margin}; ${rule.reason})`;
}
