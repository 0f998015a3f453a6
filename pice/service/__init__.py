"""What a service has beside its nodes: its health, its metrics, its logs."""
