"""The whole recipe as one job: `blip3o all`. `jobs.cli` and `blip3o submit --verb all` call it."""
