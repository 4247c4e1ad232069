import type { PoolInfo } from '../../protocol/native';
import { connectEngine } from '../../service/runtime/docker-engine';
import { runHelper } from '../../service/runtime/docker-helper';
import { testImage } from '../runtime/docker-harness';
import { describeOnRuntimes } from '../describe-on-runtimes';
import { until } from './recovery-client';

const DENIED = '203.0.113.0/28';

describeOnRuntimes(
  'network rules and the life of the service',
  { only: 'docker', env: { CELLBOX_POOL_SIZE: '1' } },
  ({ service, client, startAgain }) => {
    const docker = connectEngine();
    /** What the host denies the sandbox, as its firewall says. */
    const denied = async (id: string): Promise<string[]> => {
      const [found] = await docker.listContainers({ filters: { label: [`cellbox.id=${id}`] } });
      const [network] = Object.values(found?.NetworkSettings.Networks ?? {});
      const script = 'iptables -w 5 -S';
      const rules = await runHelper(docker, {
        image: testImage() ?? '',
        serviceId: 'tests',
        script,
      });
      const jump = rules
        .split('\n')
        .find((rule) => new RegExp(`-FW .*${network?.MacAddress || 'no address'}`, 'i').test(rule));
      const chain = / -j (\S+)/.exec(jump ?? '')?.[1] ?? 'no chain';
      const own = rules.split('\n').filter((rule) => rule.startsWith(`-A ${chain} -d `));
      return [...new Set(own.map((rule) => rule.split(' ')[3] ?? ''))];
    };
    const pool = async () => {
      const pools = (await (await client.api('GET', '/v1/pools')).json()) as {
        items: PoolInfo[];
      };
      return pools.items.find(({ template }) => template === 'code-interpreter-v1');
    };

    it('hold on a machine that was kept ready, and while the service is gone, killed', async () => {
      await until(async () => (await pool())?.ready === 1, 60_000);
      const id = await client.create({ network: { denyOut: [DENIED] } });
      expect((await pool())?.claimed_total).toBe(1);
      expect(await denied(id)).toEqual([DENIED]);
      const network = { denyOut: [DENIED, '198.51.100.0/24'] };
      expect((await client.api('PUT', `/sandboxes/${id}/network`, network)).status).toBe(204);
      await service.signal('SIGKILL');
      expect(await denied(id)).toEqual(network.denyOut);
      await startAgain();
      expect(await denied(id)).toEqual(network.denyOut);
      const detail = (await (await client.api('GET', `/sandboxes/${id}`)).json()) as { network: unknown };
      expect(detail.network).toEqual({ allowPublicTraffic: true, ...network });
      expect((await client.api('PUT', `/sandboxes/${id}/network`, {})).status).toBe(204);
      expect(await denied(id)).toEqual([]);
    }, 300_000);
  },
);
