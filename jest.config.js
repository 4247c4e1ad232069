const transform = {
  '^.+\\.[jt]s$': [
    '@swc/jest',
    {
      jsc: { parser: { syntax: 'typescript' }, target: 'es2023' },
      module: { type: 'commonjs' },
      sourceMaps: 'inline',
    },
  ],
};
// The SDKs bring one package that ships ES modules only; Jest's loader on Node 20 needs it compiled.
const transformIgnorePatterns = ['/node_modules/(?!.*chalk/)'];
const base = {
  transformIgnorePatterns,
  transform,
  testEnvironment: 'node',
  moduleFileExtensions: ['ts', 'js', 'json'],
};

/**
 * unit: no kernel, no engine, seconds.  integration: real kernels, runtimes and containers.
 * compat: the official SDKs, unmodified, against a started service.
 */
module.exports = {
  projects: [
    {
      ...base,
      displayName: 'unit',
      testMatch: ['<rootDir>/test/{protocol,service,agent,bench,chaos}/**/*.test.ts'],
    },
    {
      ...base,
      displayName: 'integration',
      testMatch: ['<rootDir>/test/{e2e,security,runtime}/**/*.test.ts'],
    },
    {
      ...base,
      displayName: 'compat',
      testEnvironment: '<rootDir>/test/compat/same-realm-environment.js',
      testMatch: ['<rootDir>/test/compat/**/*.test.ts'],
    },
  ],
  // For what hangs: a crowded machine takes its time.
  testTimeout: 60_000,
};
