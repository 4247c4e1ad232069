from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_client import Gateway, Kernel


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def gateway(home: str) -> Iterator[Gateway]:
    gateway = Gateway(home)
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def kernel(gateway: Gateway) -> Iterator[Kernel]:
    """One Python kernel for the tests of a file; a test that ends or restarts a kernel starts its own."""
    kernel = gateway.start_kernel(name="python")
    yield kernel
    kernel.close()
