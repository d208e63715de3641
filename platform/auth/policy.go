package auth

import typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"

// Access is what an RPC asks of its caller.
type Access struct {
	kind kind
	role typev1.Role
	// secret opens it to a project secret as well.
	secret bool
}

// orProjectSecret opens an RPC to the project's secret too, as Mixpanel's query
// and export APIs are (https://developer.mixpanel.com/reference/project-secret).
func (a Access) orProjectSecret() Access {
	a.secret = true
	return a
}

type kind int

const (
	denied kind = iota
	public
	authenticated
	project
	operator
	internal
)

// The kinds of access. Project needs at least a role in the project the request names.
var (
	// Public needs no credential in the RPC itself.
	Public = Access{kind: public}
	// Authenticated needs any valid credential.
	Authenticated = Access{kind: authenticated}
	// Operator needs the operator key.
	Operator = Access{kind: operator}
	// Internal needs the key our services share.
	Internal = Access{kind: internal}
	// Consumer reads and defines cohorts.
	Consumer = Access{kind: project, role: typev1.Role_ROLE_CONSUMER}
	// Analyst exports.
	Analyst = Access{kind: project, role: typev1.Role_ROLE_ANALYST}
	// Admin manages connectors and accounts.
	Admin = Access{kind: project, role: typev1.Role_ROLE_ADMIN}
	// Owner changes the project.
	Owner = Access{kind: project, role: typev1.Role_ROLE_OWNER}
)

// LeastRole is the least role in the request's project, when it is roles that decide.
func (a Access) LeastRole() (typev1.Role, bool) { return a.role, a.kind == project }

const (
	registry   = "/cohortbridge.registry.v1."
	cohortsync = "/cohortbridge.cohortsync.v1."
	ingestion  = "/cohortbridge.ingestion.v1."
)

// Policy maps every RPC to what it needs. Roles follow Mixpanel's: connectors
// ADMIN and up, exporting ANALYST and up, reading and defining cohorts everyone
// (https://docs.mixpanel.com/docs/cohort-sync). A method that is missing is refused.
var Policy = map[string]Access{
	registry + "ProjectService/CreateProject":        Operator,
	registry + "ProjectService/GetProject":           Consumer.orProjectSecret(),
	registry + "ProjectService/ListProjects":         Authenticated.orProjectSecret(),
	registry + "ProjectService/UpdateProject":        Owner,
	registry + "ProjectService/CreateServiceAccount": Admin,
	registry + "ProjectService/ListServiceAccounts":  Admin,
	registry + "ProjectService/DeleteServiceAccount": Admin,

	registry + "ConnectorService/CreateConnector": Admin,
	registry + "ConnectorService/GetConnector":    Consumer,
	registry + "ConnectorService/ListConnectors":  Consumer,
	registry + "ConnectorService/UpdateConnector": Admin,
	registry + "ConnectorService/DeleteConnector": Admin,
	registry + "ConnectorService/VerifyConnector": Admin,

	registry + "CredentialService/Authenticate":         Internal,
	registry + "CredentialService/AuthenticateIngest":   Internal,
	registry + "CredentialService/ResolveProject":       Internal,
	registry + "CredentialService/ResolveConnector":     Internal,
	registry + "CredentialService/ReportConnectorState": Internal,

	cohortsync + "CohortService/CreateCohort":  Consumer,
	cohortsync + "CohortService/GetCohort":     Consumer,
	cohortsync + "CohortService/ListCohorts":   Consumer.orProjectSecret(),
	cohortsync + "CohortService/UpdateCohort":  Consumer,
	cohortsync + "CohortService/DeleteCohort":  Consumer,
	cohortsync + "CohortService/PreviewCohort": Consumer,
	cohortsync + "CohortService/ListMembers":   Consumer,
	cohortsync + "CohortService/GetMemberSet":  Consumer.orProjectSecret(),

	cohortsync + "CohortService/ListEvaluations":   Consumer,
	cohortsync + "CohortService/UploadIds":         Consumer,
	cohortsync + "CohortService/ExportDefinitions": Consumer,
	cohortsync + "CohortService/ImportDefinitions": Consumer,

	cohortsync + "ReceiverService/ReceiveMembers": Admin,

	cohortsync + "SyncService/CreateSync": Analyst,
	cohortsync + "SyncService/DryRunSync": Analyst,
	cohortsync + "SyncService/GetSync":    Consumer,
	cohortsync + "SyncService/ListSyncs":  Consumer,
	cohortsync + "SyncService/DeleteSync": Analyst,
	cohortsync + "SyncService/PauseSync":  Analyst,
	cohortsync + "SyncService/ResumeSync": Analyst,
	cohortsync + "SyncService/RunSync":    Analyst,

	cohortsync + "RunService/GetRun":       Consumer,
	cohortsync + "RunService/ListRuns":     Consumer,
	cohortsync + "RunService/WatchRun":     Consumer,
	cohortsync + "RunService/CancelRun":    Analyst,
	cohortsync + "RunService/ApproveRun":   Analyst,
	cohortsync + "RunService/ListRunUsers": Consumer,

	// The sender's credential is inside the request; ingestion checks it.
	ingestion + "IngestionService/IngestRaw":                  Public,
	ingestion + "IngestionService/ValidateProjectCredentials": Public,
	ingestion + "IngestionService/ImportEvents":               Admin,
	ingestion + "IngestionService/UpdateProfiles":             Admin,

	ingestion + "DataService/ExportEvents":      Consumer.orProjectSecret(),
	ingestion + "DataService/QueryProfiles":     Consumer.orProjectSecret(),
	ingestion + "DataService/GetProfile":        Consumer,
	ingestion + "DataService/ListProfiles":      Consumer,
	ingestion + "DataService/GetGroupProfile":   Consumer,
	ingestion + "DataService/ListGroupProfiles": Consumer,
	ingestion + "DataService/ListWarnings":      Consumer,
	ingestion + "DataService/GetDataStatistics": Consumer,
	ingestion + "DataService/RebuildProjection": Owner,

	ingestion + "IdentityService/LookupIdentity": Consumer,

	ingestion + "UsageService/GetUsage":               Consumer,
	ingestion + "UsageService/ListUsage":              Consumer,
	ingestion + "UsageService/ExportUsage":            Consumer,
	ingestion + "UsageService/BreakDownUsage":         Consumer,
	ingestion + "UsageService/ExplainUser":            Consumer,
	ingestion + "UsageService/GetOrganizationUsage":   Operator,
	ingestion + "UsageService/ListMtuRules":           Authenticated,
	ingestion + "UsageService/CreateReclassification": Owner,
	ingestion + "UsageService/GetReclassification":    Consumer,
	ingestion + "UsageService/ListReclassifications":  Consumer,
	ingestion + "UsageService/WatchReclassification":  Consumer,

	ingestion + "EvaluationService/EvaluateLeaves":   Internal,
	ingestion + "EvaluationService/AssignUsers":      Internal,
	ingestion + "EvaluationService/ListChangedUsers": Internal,
	ingestion + "EvaluationService/ResolveMembers":   Internal,

	"/grpc.health.v1.Health/Check":                                   Public,
	"/grpc.health.v1.Health/Watch":                                   Public,
	"/grpc.health.v1.Health/List":                                    Public,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      Public,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Public,
}
