{{/*
What the operator may do to the jobs of a namespace: one (verb, resource) pair for each call it makes and no other,
compared with the API server's audit log by the e2e tests. Nothing here may be a star.
*/}}
{{- define "greentrain.jobRules" -}}
- apiGroups: [greentrain.dev]
  resources: [greentrainingjobs]
  # delete for spec.runPolicy.ttlSecondsAfterFinished alone.
  verbs: [list, watch, delete]
- apiGroups: [greentrain.dev]
  resources: [greentrainingjobs/status]
  verbs: [patch]
# get only after a create was answered with "already exists": to see whose it is.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
# For a job that asks for more than Pod Security's baseline: whether the namespace's label lets it.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end -}}
