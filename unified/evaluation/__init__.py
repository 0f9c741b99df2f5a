"""Numbers for masks on disk and for models: protocols, scoring, submissions, evaluators."""
