"""From the files of the published MedSIGHT release to a folder in our format: `medsight convert`."""
