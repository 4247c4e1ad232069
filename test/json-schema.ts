import { z } from 'zod';
import type { JsonSchema, OpenApiDocument } from '../protocol/openapi';

/** A check of values against a schema of the document: what is wrong with one, empty when nothing is. */
export function compile(document: OpenApiDocument, schema: JsonSchema): (value: unknown) => string[] {
  const text = JSON.stringify({ ...schema, $defs: document.components.schemas });
  const standalone = JSON.parse(
    text.replaceAll('#/components/schemas/', '#/$defs/'),
  ) as z.core.JSONSchema.JSONSchema;
  const parsed = z.fromJSONSchema(standalone);
  return (value) => {
    const { success, error } = parsed.safeParse(value);
    return success ? [] : error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  };
}
