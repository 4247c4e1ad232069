import { z } from 'zod';
import {
  CONTROL_PLANE_ANSWERS,
  CONTROL_PLANE_OPERATIONS,
  CONTROL_PLANE_REQUESTS,
} from './openapi-control-plane';
import { NATIVE_ANSWERS, NATIVE_OPERATIONS, NATIVE_REQUESTS } from './openapi-native';
import type { HttpMethod, Operation, OperationAnswer } from './openapi-operation';

export type JsonSchema = Record<string, unknown>;

export interface OpenApiResponse {
  description: string;
  headers?: Record<string, { description: string; schema: JsonSchema }>;
  content?: Record<string, { schema: JsonSchema }>;
}

export interface OpenApiOperation {
  operationId: string;
  tags: string[];
  summary: string;
  description?: string;
  security: Array<Record<string, string[]>>;
  parameters?: Array<{
    name: string;
    in: 'path' | 'query' | 'header';
    required: boolean;
    description?: string;
    schema: JsonSchema;
  }>;
  requestBody?: { required: boolean; content: Record<string, { schema: JsonSchema }> };
  responses: Record<string, OpenApiResponse>;
}

export interface OpenApiDocument {
  openapi: '3.1.0';
  info: { title: string; version: string; description: string };
  tags: Array<{ name: string }>;
  paths: Record<string, Partial<Record<HttpMethod, OpenApiOperation>>>;
  components: { schemas: Record<string, JsonSchema>; securitySchemes: Record<string, JsonSchema> };
}

const REQUESTS: Record<string, z.ZodType> = { ...CONTROL_PLANE_REQUESTS, ...NATIVE_REQUESTS };
const ANSWERS: Record<string, z.ZodType> = { ...CONTROL_PLANE_ANSWERS, ...NATIVE_ANSWERS };

const STATUS_TEXTS: Record<number, string> = {
  400: 'The request is not valid',
  401: 'The key or token is missing or wrong',
  403: 'It is not for this team',
  404: 'There is no such thing, or it is not yours',
  409: 'Its state does not allow it',
  410: 'It no longer exists',
  429: 'A limit is reached',
  500: 'A defect of the service; its log has the cause',
  501: 'Not implemented yet',
  503: 'Not possible at the moment',
  504: 'It took too long',
};

const DESCRIPTION =
  'The control plane speaks E2B’s API; what is under `/v1` is Cellbox’s own. Every answer carries `X-Request-Id`.';

/** The description of everything that is served on the service's port under its own name, `more` included. */
export function openApiDocument(version: string, more: readonly Operation[] = []): OpenApiDocument {
  const operations = [...CONTROL_PLANE_OPERATIONS, ...NATIVE_OPERATIONS, ...more];
  const paths: OpenApiDocument['paths'] = {};
  for (const operation of operations) {
    const path = (paths[operation.path] ??= {});
    path[operation.method] = describe(operation);
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Cellbox', version, description: DESCRIPTION },
    tags: [...new Set(operations.map(({ tag }) => tag))].map((name) => ({ name })),
    paths,
    components: {
      schemas: { ...components(REQUESTS, 'input'), ...components(ANSWERS, 'output') },
      securitySchemes: {
        key: { type: 'apiKey', in: 'header', name: 'X-API-Key' },
        admin: { type: 'apiKey', in: 'header', name: 'X-Admin-Token' },
      },
    },
  };
}

/** An operation of the contract that is not served yet, which says so. */
export function laterOperation(method: HttpMethod, path: string, feature: string): Operation {
  return {
    method,
    path,
    tag: 'Later',
    summary: `${feature} (not implemented yet)`,
    answers: [],
    errors: [501],
  };
}

/** One that the contract had once. */
export function goneOperation(method: HttpMethod, path: string): Operation {
  return { method, path, tag: 'Later', summary: 'No longer exists', answers: [], errors: [410] };
}

function describe(operation: Operation): OpenApiOperation {
  const { method, path, access = 'key', body, query } = operation;
  const parameters: OpenApiOperation['parameters'] = [
    ...[...path.matchAll(/\{(\w+)\}/g)].map(([, name = '']) => ({
      name,
      in: 'path' as const,
      required: true,
      schema: { type: 'string' },
    })),
    ...Object.entries(query?.shape ?? {}).map(([name, schema]) => queryParameter(name, schema)),
    ...Object.entries(operation.headers ?? {}).map(([name, description]) => ({
      name,
      in: 'header' as const,
      required: false,
      description,
      schema: { type: 'string' },
    })),
  ];
  const named = path.replace(/[{}]/g, '').split('/').filter(Boolean).join('_').replace(/\W/g, '_');
  return {
    operationId: `${method}_${named}`,
    tags: [operation.tag],
    summary: operation.summary,
    ...(operation.description !== undefined && { description: operation.description }),
    security: access === 'none' ? [] : [{ [access]: [] }],
    ...(parameters.length > 0 && { parameters }),
    ...(body !== undefined && {
      requestBody: {
        required: operation.bodyOptional !== true,
        content: { 'application/json': { schema: schemaOf(body, 'input') } },
      },
    }),
    responses: responses(operation),
  };
}

function responses({ path, access, answers, errors = [] }: Operation): Record<string, OpenApiResponse> {
  const error = path.startsWith('/v1/') ? 'NativeError' : 'Error';
  const failures = new Set([...(access === 'none' ? [] : [401]), ...errors, 500]);
  const described: Array<[number, OpenApiResponse]> = [
    ...answers.map((answer): [number, OpenApiResponse] => [answer.status, response(answer)]),
    ...[...failures].map((status): [number, OpenApiResponse] => [
      status,
      {
        description: STATUS_TEXTS[status] ?? 'It failed',
        content: { 'application/json': { schema: { $ref: reference(error) } } },
      },
    ]),
  ];
  return Object.fromEntries(
    described.sort(([a], [b]) => a - b).map(([status, each]) => [String(status), each]),
  );
}

function response({
  description,
  schema,
  mediaType = 'application/json',
  headers,
}: OperationAnswer): OpenApiResponse {
  const told = Object.entries(headers ?? {}).map(([name, text]) => [
    name,
    { description: text, schema: { type: 'string' } },
  ]);
  return {
    description,
    ...(told.length > 0 && { headers: Object.fromEntries(told) }),
    ...(schema !== undefined && { content: { [mediaType]: { schema: schemaOf(schema, 'output') } } }),
  };
}

function queryParameter(
  name: string,
  schema: z.core.$ZodType,
): NonNullable<OpenApiOperation['parameters']>[number] {
  const { description, ...rest } = plain(z.toJSONSchema(schema, { io: 'input' }));
  return {
    name,
    in: 'query',
    required: !z.safeParse(schema, undefined).success,
    ...(typeof description === 'string' && { description }),
    schema: rest,
  };
}

/** A schema as it stands in a path: a named one as a reference, a list of them as a list of references. */
function schemaOf(schema: z.ZodType, io: 'input' | 'output'): JsonSchema {
  const named = Object.entries(io === 'input' ? REQUESTS : ANSWERS).find(([, each]) => each === schema);
  if (named !== undefined) return { $ref: reference(named[0]) };
  if (schema instanceof z.ZodArray) {
    return { type: 'array', items: schemaOf(schema.element as z.ZodType, io) };
  }
  return plain(z.toJSONSchema(schema, { io }));
}

function components(schemas: Record<string, z.ZodType>, io: 'input' | 'output'): Record<string, JsonSchema> {
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  const made = z.toJSONSchema(registry, { io, uri: reference }).schemas;
  return Object.fromEntries(Object.entries(made).map(([id, schema]) => [id, plain(schema)]));
}

/** Without what only a document of its own has. */
function plain(schema: object): JsonSchema {
  const { $schema: _dialect, $id: _id, ...rest } = schema as JsonSchema;
  return rest;
}

function reference(id: string): string {
  return `#/components/schemas/${id}`;
}
