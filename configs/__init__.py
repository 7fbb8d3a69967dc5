"""Complete run configurations, one per file. `base_config(name)` of a user's YAML may extend them by name."""
