"""What a run is compared with, and how: estimators, risks at several lengths, long prompts."""
