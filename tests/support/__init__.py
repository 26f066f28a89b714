"""What tests share: small data sets, models, runs of scripts, and oracles."""
