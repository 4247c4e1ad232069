import { isHostMask, maskedHost } from '../../../service/sandboxes/ingress';

describe('a mask for the host', () => {
  it.each([
    'localhost',
    'localhost:8080',
    'localhost:${PORT}',
    '127.0.0.1:${PORT}',
    '[::1]',
    '[::1]:${PORT}',
    '${PORT}.my-app.example',
    'app-${PORT}.example:${PORT}',
    'My_Service.internal',
    `${'a'.repeat(63)}.example`,
  ])('may be %j', (mask) => {
    expect(isHostMask(mask)).toBe(true);
  });

  it.each([
    '',
    ' localhost',
    'localhost ',
    'local host',
    'localhost\r\nX-Evil: 1',
    'localhost\n',
    'localhost\0',
    'localhost\t',
    'http://localhost',
    'localhost/path',
    'localhost?a',
    'localhost#a',
    'user@localhost',
    'a,b',
    'localhost:',
    'localhost:0',
    'localhost:65536',
    'localhost:x',
    'localhost:1:2',
    'localhost:${PORT}0',
    'localhost:${PORT}${PORT}',
    'localhost:${port}',
    'localhost:$PORT',
    'localhost:${HOME}',
    '${PORT',
    ':80',
    '.',
    'a..b',
    '.a',
    'a.',
    '-a',
    'a-',
    'bücher.example',
    'ｌocalhost',
    '[::1',
    '::1',
    '[]',
    '[fe80::1%eth0]',
    '[localhost]',
    '[::1]x',
    `${'a'.repeat(64)}.example`,
    `${'a.'.repeat(130)}example`,
  ])('is never %j', (mask) => {
    expect(isHostMask(mask)).toBe(false);
  });

  it('has the port wherever the placeholder stands', () => {
    expect(maskedHost('${PORT}.example:${PORT}', 3000)).toBe('3000.example:3000');
    expect(maskedHost('localhost', 3000)).toBe('localhost');
  });
});
