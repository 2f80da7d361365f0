"""The page for a site's own staff, in a process of its own beside the gateway."""
