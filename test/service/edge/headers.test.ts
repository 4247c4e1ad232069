import {
  requestHeaders,
  responseHeaders,
  trailers,
  upgradeResponseHead,
} from '../../../service/edge/headers';

const plain = { connection: 'close', body: 'none', emptyBody: false } as const;

describe('requestHeaders', () => {
  it('keeps order, case and duplicates, and drops what belongs to the connection', () => {
    const raw = [
      ...['Host', 'a.example', 'X-One', '1', 'x-one', '2', 'Connection', 'keep-alive, X-Hop', 'X-Hop', 'h'],
      ...[
        'Keep-Alive',
        'timeout=5',
        'Proxy-Authorization',
        'Basic x',
        'Cookie',
        'a=b',
        'Accept-Encoding',
        'gzip',
      ],
    ];
    expect(requestHeaders(raw, plain)).toEqual([
      ...['Host', 'a.example', 'X-One', '1', 'x-one', '2', 'Cookie', 'a=b', 'Accept-Encoding', 'gzip'],
      ...['Connection', 'close'],
    ]);
  });

  it('drops claims about forwarding, the expectation already met, and the offer of HTTP/2', () => {
    const raw = [
      'Forwarded',
      'for=1',
      'X-Forwarded-For',
      '1',
      'x-forwarded-proto',
      'https',
      'X-Forwarded-Host',
      'h',
    ];
    raw.push('Expect', '100-continue', 'HTTP2-Settings', 'x', 'X-Real-Ip', '1');
    expect(requestHeaders(raw, plain)).toEqual(['X-Real-Ip', '1', 'Connection', 'close']);
  });

  it('does not let the Connection header take away what frames or routes the message', () => {
    const raw = ['Host', 'h', 'Content-Length', '3', 'Connection', 'close, content-length, host'];
    expect(requestHeaders(raw, { ...plain, body: 'length' })).toEqual([
      ...['Host', 'h', 'Content-Length', '3', 'Connection', 'close'],
    ]);
  });

  it('frames a chunked body anew and announces its trailers', () => {
    const raw = ['Transfer-Encoding', 'Chunked', 'Trailer', 'X-Sum', 'TE', 'gzip;q=0.1, trailers'];
    expect(requestHeaders(raw, { ...plain, body: 'chunked' })).toEqual([
      ...['Connection', 'close', 'Transfer-Encoding', 'chunked', 'Trailer', 'X-Sum', 'TE', 'trailers'],
    ]);
    expect(requestHeaders(['Trailer', 'X-Sum'], plain)).toEqual(['Connection', 'close']);
  });

  it('puts the masked host first, and tells the one that it stands in for', () => {
    const masked = { ...plain, maskedHost: 'localhost:80' };
    expect(requestHeaders(['A', '1', 'host', 'a.example', 'X_Forwarded_Host', 'evil'], masked)).toEqual([
      ...['A', '1', 'Host', 'localhost:80', 'X-Forwarded-Host', 'a.example', 'Connection', 'close'],
    ]);
    expect(requestHeaders(['A', 'Host'], masked)).toEqual([
      ...['Host', 'localhost:80', 'A', 'Host', 'Connection', 'close'],
    ]);
  });

  it('states the length of a missing body, and asks for an upgrade', () => {
    expect(requestHeaders([], { ...plain, emptyBody: true })).toEqual([
      'Connection',
      'close',
      'Content-Length',
      '0',
    ]);
    expect(
      requestHeaders(['Upgrade', 'websocket'], { ...plain, connection: { upgrade: 'websocket' } }),
    ).toEqual([...['Connection', 'Upgrade', 'Upgrade', 'websocket']]);
  });
});

describe('answers', () => {
  const raw = ['Set-Cookie', 'a', 'Set-Cookie', 'b', 'Transfer-Encoding', 'chunked', 'Trailer', 'X-Sum'];

  it('keep duplicates and announce trailers only where they can follow', () => {
    expect(responseHeaders(raw, { chunked: true })).toEqual([
      ...['Set-Cookie', 'a', 'Set-Cookie', 'b', 'Trailer', 'X-Sum'],
    ]);
    expect(responseHeaders(raw, { chunked: false })).toEqual(['Set-Cookie', 'a', 'Set-Cookie', 'b']);
  });

  it('to an upgrade pass whole', () => {
    expect(upgradeResponseHead('Yes', ['Upgrade', 'x', 'Connection', 'Upgrade'])).toBe(
      'HTTP/1.1 101 Yes\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n',
    );
  });

  it('lose trailers that would change how the message is framed, or by whom it came', () => {
    const raw = [
      'X-Sum',
      '1',
      'Content-Length',
      '9',
      'Transfer-Encoding',
      'x',
      'Host',
      'h',
      'Forwarded',
      'f',
    ];
    expect(trailers(raw)).toEqual([['X-Sum', '1']]);
  });
});
