"""Federations of hospitals through NVFlare: the job, the server's workflow and what runs at a site.

NVFlare is imported in this room only, and only where a job runs: studies are exported without it.
"""
