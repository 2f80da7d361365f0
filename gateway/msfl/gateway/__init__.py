"""The agent at a site: dials out only, decides, pulls, starts, watches, and filters what leaves."""
