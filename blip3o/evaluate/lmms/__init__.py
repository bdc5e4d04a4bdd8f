"""The adapter to lmms-eval: a bundle as one of its models, and a task of this project.

lmms-eval finds `model` through an entry point; `jobs.lmms` writes the task. Nothing else imports this package, since
`model` needs lmms-eval, which is not a dependency.
"""
