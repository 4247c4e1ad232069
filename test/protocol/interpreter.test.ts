import { CreateContextRequest, ExecuteRequest, OutputEvent } from '../../protocol/interpreter';

describe('ExecuteRequest', () => {
  it('takes absent fields and explicit nulls, as the two SDKs send them', () => {
    expect(ExecuteRequest.parse({ code: '' })).toEqual({ code: '' });
    const nulls = { code: 'x', context_id: null, language: null, env_vars: null };
    expect(ExecuteRequest.parse(nulls)).toEqual(nulls);
  });

  it('ignores unknown fields', () => {
    expect(ExecuteRequest.parse({ code: 'x', novelty: 1 })).toEqual({ code: 'x' });
  });

  it.each([
    [{}],
    [{ code: { code: 'x' } }],
    [{ code: 'x', env_vars: { a: 1 } }],
    [{ code: 'x', language: 1 }],
    ['x'],
  ])('refuses %j', (body) => {
    expect(ExecuteRequest.safeParse(body).success).toBe(false);
  });
});

it('CreateContextRequest takes an empty object', () => {
  expect(CreateContextRequest.parse({})).toEqual({});
});

describe('OutputEvent', () => {
  it.each([
    [{ type: 'stdout', text: '' }],
    [{ type: 'error', name: '', value: '' }],
    [{ type: 'result', is_main_result: true }],
    [{ type: 'unheard_of' }],
    [{ type: 'state_lost' }],
  ])('refuses %j, which an SDK would trip over', (event) => {
    expect(OutputEvent.safeParse(event).success).toBe(false);
  });

  it('takes a list where a result has JSON', () => {
    const event = { type: 'result', json: [1, 2], extra: {}, is_main_result: false };
    expect(OutputEvent.parse(event)).toEqual(event);
  });
});
