'use strict';

const { TestEnvironment } = require('jest-environment-node');

/**
 * Jest runs tests in a realm of their own, where Node's own errors (a reset connection, an abort) are not
 * `instanceof Error`. The SDKs ask just that to tell how a request ended, so here they get Node's classes, as in any
 * program.
 */
class SameRealmEnvironment extends TestEnvironment {
  constructor(config, context) {
    super(config, context);
    Object.assign(this.global, { Error, TypeError, DOMException });
  }
}

module.exports = SameRealmEnvironment;
