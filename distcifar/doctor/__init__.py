"""The doctor: facts of a machine or a cluster are gathered, pure checks make findings of them, some can be fixed."""
