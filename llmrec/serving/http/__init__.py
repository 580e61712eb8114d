"""The HTTP front of serving: `create_app` puts a `Service` behind the API that docs/serving.md describes."""
