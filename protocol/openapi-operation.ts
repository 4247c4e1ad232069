import type { z } from 'zod';

export type HttpMethod = 'get' | 'post' | 'put' | 'patch' | 'delete';

/** What a caller has to show: a team's key, the operator's token, or nothing. */
export type Access = 'key' | 'admin' | 'none';

export interface OperationAnswer {
  status: number;
  description: string;
  /** Absent: there is no body. */
  schema?: z.ZodType;
  /** `application/json` when absent. */
  mediaType?: string;
  /** By name, what they tell. */
  headers?: Record<string, string>;
}

/** One endpoint as the documents describe it. Paths name their parameters in braces. */
export interface Operation {
  method: HttpMethod;
  path: string;
  tag: string;
  summary: string;
  description?: string;
  access?: Access;
  query?: z.ZodObject;
  headers?: Record<string, string>;
  body?: z.ZodType;
  /** The body may be left out. */
  bodyOptional?: boolean;
  answers: OperationAnswer[];
  /** Statuses of failures besides those that every operation has. */
  errors?: number[];
}

export function json(status: number, description: string, schema: z.ZodType): OperationAnswer {
  return { status, description, schema };
}

export function empty(status: number, description: string): OperationAnswer {
  return { status, description };
}
