"""Accounts of a site's own staff: who may log in at its page, and what stands against those who may not."""
