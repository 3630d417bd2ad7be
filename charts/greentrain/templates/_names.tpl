{{/* Names and labels, spelled once. A release called greentrain gets no name twice. */}}

{{- define "greentrain.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "greentrain.agentName" -}}
{{- include "greentrain.fullname" . }}-agent
{{- end -}}

{{- define "greentrain.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "greentrain.agentSelectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "greentrain.originLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "greentrain.labels" -}}
{{ include "greentrain.selectorLabels" . }}
{{ include "greentrain.originLabels" . }}
{{- end -}}

{{- define "greentrain.agentLabels" -}}
{{ include "greentrain.agentSelectorLabels" . }}
{{ include "greentrain.originLabels" . }}
{{- end -}}

{{- define "greentrain.image" -}}
{{- $repository := required "image.repository is empty: build the operator image, push it to your registry (docs/start/install.md) and give --set image.repository=REGISTRY/greentrain/operator." .Values.image.repository -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- define "greentrain.agentImage" -}}
{{- $repository := required "agent.image.repository is empty: build the agent image, push it to your registry (docs/start/install.md) and give --set agent.image.repository=REGISTRY/greentrain/agent, or do without energy with --set agent.enabled=false." .Values.agent.image.repository -}}
{{- printf "%s:%s" $repository (.Values.agent.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- /* What the retiring Job needs is made before it and goes with it. */ -}}
{{- define "greentrain.retireAnnotations" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end -}}
