"""The job behind `blip3o evaluate --suite … --target …`: prepare → generate → judge → score → report.

Each stage reads what the one before it left in files, so each can be run alone and again.
"""
