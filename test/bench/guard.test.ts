import fs from 'node:fs';
import path from 'node:path';
import type { Figures } from '../../bench/figures';
import { check, describe as lineOf, limitOf, parseRules, rowsOf, violations } from '../../bench/guard';
import type { Rule } from '../../bench/guard';
import { CREATE_ROWS } from '../../bench/creates';
import { scenarios } from '../../bench/scenarios';

const rule: Rule = {
  name: 'a ÷ b',
  over: 'a | x | p50',
  under: 'b | y | p50',
  measured: 2,
  margin: 1.5,
  reason: 'why',
};
const at = (over: number, under: number): Figures => ({ 'a | x | p50': over, 'b | y | p50': under });

describe('violations()', () => {
  it('lets a ratio reach its limit and not exceed it', () => {
    expect(limitOf(rule)).toBe(3);
    expect(violations([rule], at(30, 10))).toEqual([]);
    expect(violations([rule], at(31, 10))).toEqual([{ rule, ratio: 3.1 }]);
  });

  it('does not take a figure that is missing, or a zero, for a good one', () => {
    expect(violations([rule], { 'a | x | p50': 1 })).toEqual([{ rule, ratio: Number.NaN }]);
    expect(violations([rule], at(1, 0))).toEqual([{ rule, ratio: Number.POSITIVE_INFINITY }]);
  });
});

describe('check()', () => {
  const other: Rule = { ...rule, name: 'c ÷ d', over: 'c | x | p50', under: 'd | y | p50' };
  const good: Figures = { 'c | x | p50': 1, 'd | y | p50': 1 };

  async function run(...measured: Figures[]) {
    const asked: (readonly string[])[] = [];
    const lines: string[] = [];
    const found = await check(
      [rule, other],
      (rows) => {
        asked.push(rows);
        return Promise.resolve(measured[asked.length - 1] ?? {});
      },
      (line) => lines.push(line),
    );
    return { asked, lines, found };
  }

  it('measures once where everything holds', async () => {
    const { asked, found } = await run({ ...good, ...at(2, 1) });
    expect(asked).toEqual([['a', 'b', 'c', 'd']]);
    expect(found).toEqual([]);
  });

  it('measures again what exceeded its limit, and only that, and believes the second time', async () => {
    const { asked, found } = await run({ ...good, ...at(9, 1) }, at(2, 1));
    expect(asked).toEqual([
      ['a', 'b', 'c', 'd'],
      ['a', 'b'],
    ]);
    expect(found).toEqual([]);
  });

  it('reports what exceeded it both times', async () => {
    const { found } = await run({ ...good, ...at(9, 1) }, at(8, 1));
    expect(found).toEqual([{ rule, ratio: 8 }]);
    expect(found.map(lineOf)).toEqual(['a ÷ b: 8.00× (limit 3.00×: 2× and a margin of 1.5; why)']);
  });
});

describe('guard.json', () => {
  const text = fs.readFileSync(path.join(__dirname, '..', '..', 'bench', 'guard.json'), 'utf8');

  it('speaks of rows that are measured, each with a reason', () => {
    const rules = parseRules(text);
    const measured = [
      ...scenarios(true).map(({ name }) => name),
      CREATE_ROWS.pooled,
      CREATE_ROWS.pooledFirst,
    ];
    expect(rowsOf(rules).filter((row) => !measured.includes(row))).toEqual([]);
    expect(new Set(rules.map(({ name }) => name)).size).toBe(rules.length);
  });

  it('is refused with a field that is misspelt or a margin below one', () => {
    expect(() => parseRules(JSON.stringify({ rules: [{ ...rule, limit: 3 }] }))).toThrow();
    expect(() => parseRules(JSON.stringify({ rules: [{ ...rule, margin: 0.5 }] }))).toThrow();
    expect(() => parseRules('{"rules": []}')).toThrow();
  });
});
