import { Reaper } from '../../../service/sandboxes/reaper';
import { gate } from '../../fakes/fake-runtime';

describe('Reaper', () => {
  it('calls back in the order of the deadlines, each once', async () => {
    const order: string[] = [];
    const done = gate();
    const reaper = new Reaper((id) => {
      order.push(id);
      if (id === 'last') done.open();
    });
    const now = Date.now();
    reaper.set('last', now + 60);
    reaper.set('first', now - 1000);
    reaper.set('middle', now + 30);
    reaper.set('never', now + 40);
    reaper.clear('never');
    expect(order).toEqual([]);
    await done.opened;
    expect(order).toEqual(['first', 'middle', 'last']);
    expect(reaper.next).toBeUndefined();
    reaper.close();
  });

  it('moves a deadline both ways', async () => {
    const began = Date.now();
    const done = gate();
    const order: string[] = [];
    const reaper = new Reaper((id) => {
      order.push(id);
      if (order.length === 2) done.open();
    });
    reaper.set('a', began + 20);
    reaper.set('b', began + 60_000);
    reaper.set('a', began + 60);
    reaper.set('b', began + 30);
    await done.opened;
    expect(order).toEqual(['b', 'a']);
    expect(Date.now() - began).toBeGreaterThanOrEqual(59);
    reaper.close();
  });

  it('keeps a deadline that is further away than a timer can be set', () => {
    const reaper = new Reaper(() => {
      throw new Error('too early');
    });
    const at = Date.now() + 365 * 86_400_000;
    reaper.set('a', at);
    expect(reaper.next).toBe(at);
    reaper.close();
  });

  it('forgets everything when closed, twice', () => {
    const reaper = new Reaper(() => undefined);
    reaper.set('a', Date.now());
    reaper.close();
    reaper.close();
    reaper.set('b', Date.now());
    expect(reaper.next).toBeUndefined();
  });
});
