"""The Ray Serve deployments: replicas of the model, and the HTTP ingress in front of them. Only these files import Ray.

A model's application has replicas of `replica.Generator`; the face has replicas of `ingress.Ingress`, which calls them
through `handles.HandleBackend`. `applications` puts both together, and `autoscaling` says how many replicas there are.
"""
