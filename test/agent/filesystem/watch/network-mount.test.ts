import fs from 'node:fs/promises';
import { isNetworkType } from '../../../../kernel-image/agent/filesystem/watch/network-mount';

describe('network mounts', () => {
  it.each([
    ['NFS', 0x6969],
    ['CIFS', 0xff534d42],
    ['CIFS as a signed number', 0xff534d42 | 0],
    ['SMB', 0x517b],
    ['SMB2', 0xfe534d42],
    ['FUSE', 0x65735546],
  ])('are of type %s', (_name, type) => {
    expect(isNetworkType(type)).toBe(true);
  });

  it('are not what this machine runs on', async () => {
    expect(isNetworkType((await fs.statfs('/proc')).type)).toBe(false);
    expect(isNetworkType(0xef53)).toBe(false);
  });
});
