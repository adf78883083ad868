"""Programs that run in the namespaces of hosts, started by their module's names; they talk JSON, a line each way."""
