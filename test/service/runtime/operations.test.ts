import { Operations } from '../../../service/runtime/operations';

describe('Operations', () => {
  const after = (steps: string[], gate: Promise<void>, name: string) => async () => {
    steps.push(`${name} begins`);
    await gate;
    steps.push(`${name} ends`);
  };
  const gate = () => {
    let open: () => void = () => undefined;
    return { opened: new Promise<void>((resolve) => (open = resolve)), open: () => open() };
  };

  it('run one after another on one machine, beside those of others', async () => {
    const operations = new Operations();
    const steps: string[] = [];
    const first = gate();
    const all = [
      operations.run('a', after(steps, first.opened, 'a1')),
      operations.run('a', after(steps, Promise.resolve(), 'a2')),
      operations.run('b', after(steps, Promise.resolve(), 'b1')).then(() => first.open()),
    ];
    await Promise.all(all);
    expect(steps).toEqual(['a1 begins', 'b1 begins', 'b1 ends', 'a1 ends', 'a2 begins', 'a2 ends']);
  });

  it('give each caller its own result, and the next one its turn after a failure', async () => {
    const operations = new Operations();
    const failing = operations.run('a', () => Promise.reject(new Error('no')));
    const next = operations.run('a', () => Promise.resolve('yes'));
    await expect(failing).rejects.toThrow('no');
    await expect(next).resolves.toBe('yes');
  });

  it('are settled when those under way have ended, failed ones too', async () => {
    const operations = new Operations();
    const steps: string[] = [];
    const held = gate();
    void operations.run('a', after(steps, held.opened, 'a1'));
    operations.run('b', () => Promise.reject(new Error('no'))).catch(() => undefined);
    const settled = operations.settled().then(() => steps.push('settled'));
    held.open();
    await settled;
    expect(steps).toEqual(['a1 begins', 'a1 ends', 'settled']);
    await operations.settled(); // with none
  });
});
