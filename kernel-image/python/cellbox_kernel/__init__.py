"""What runs inside a sandbox: the kernel gateway, the Python kernel and its display formatters."""
