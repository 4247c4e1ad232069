/** Body of every failure under `/v1`: the control plane's, plus a word that names the cause and what can be done. */
export interface NativeError {
  code: number;
  error: string;
  message: string;
  remedy?: string;
}

/** One language that contexts can have here; `missing` says what has to be there first, absent when nothing has. */
export interface LanguageInfo {
  name: string;
  missing?: string;
}

/** Answer to `GET /v1/info`. */
export interface ServiceInfo {
  version: string;
  runtime: string;
  /** What the runtime does not isolate or enforce, one sentence each; empty when it is all. */
  caveats: string[];
  isolation_levels: string[];
  domain: string;
  templates: Array<{ id: string; alias: string }>;
  languages: LanguageInfo[];
  limits: {
    max_sandboxes: number;
    max_timeout_ms: number;
    cpu_count: number;
    memory_bytes: number;
    disk_bytes: number;
    pids: number;
    open_files: number;
    max_body_bytes: number;
  };
}
