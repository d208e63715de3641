package store

import (
	"context"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Cohort is a named definition.
type Cohort struct {
	ID, ProjectID            int64
	DisplayName, Description string
	Definition               *typev1.Expression
	// Version counts changes of the definition, from 1.
	Version int32
	// Revision counts all changes, from 1; it is the etag.
	Revision       int64
	LastEvaluation *Evaluation
	// Failed is the newest evaluation if it failed.
	Failed *EvaluationRecord
	// SyncInterval is that of its most frequent active dynamic sync; 0 without one.
	SyncInterval time.Duration
	// MembersUpdated is when its kept users last changed; zero for none.
	MembersUpdated time.Time
	Created        time.Time
	Updated        time.Time
}

// Evaluation is an evaluation in numbers.
type Evaluation struct {
	AsOf       time.Time     `json:"as_of"`
	Users      int64         `json:"users"`
	Identified int64         `json:"identified"`
	Took       time.Duration `json:"took"`
	Leaves     []LeafStat    `json:"leaves,omitempty"`
	ProfileSeq uint64        `json:"profile_seq"`
}

// LeafStat is one leaf's part in an evaluation.
type LeafStat struct {
	Summary string        `json:"summary"`
	Users   int64         `json:"users"`
	Took    time.Duration `json:"took"`
}

// Cohorts keeps definitions.
type Cohorts interface {
	// CreateCohort stores c and returns it with its id. The same requestID
	// again returns the first one's cohort. A taken name is an Exists fault.
	CreateCohort(ctx context.Context, c Cohort, requestID string) (Cohort, error)
	// Cohort reads one.
	Cohort(ctx context.Context, project, id int64) (Cohort, error)
	// ListCohorts reads up to limit with an id above after.
	ListCohorts(ctx context.Context, project, after int64, limit int) ([]Cohort, error)
	// UpdateCohort replaces name, description, definition and version if the
	// stored revision is still c.Revision; else it fails with a Conflict fault.
	UpdateCohort(ctx context.Context, c Cohort) (Cohort, error)
	// DeleteCohort removes one; a Precondition fault while a sync uses it or another
	// cohort refers to it.
	DeleteCohort(ctx context.Context, project, id int64) error
	// SetEvaluation records an evaluation that succeeded.
	SetEvaluation(ctx context.Context, project, id int64, e Evaluation) error
	// SetEvaluationFailed records one that failed; the last successful one stays.
	SetEvaluationFailed(ctx context.Context, project, id int64, f EvaluationRecord) error
	// Evaluations reads up to limit evaluations before an instant, newest first.
	// The newest KeptEvaluations are kept.
	Evaluations(ctx context.Context, project, id int64, before time.Time, limit int) ([]EvaluationRecord, error)
	// CohortMembers are the users that were uploaded to a cohort or that a webhook
	// keeps in it; none for one that never got any.
	CohortMembers(ctx context.Context, project, id int64) (Members, error)
	// ChangeCohortMembers replaces them by what fn makes of them.
	ChangeCohortMembers(ctx context.Context, project, id int64, now time.Time, fn func(*roaring64.Bitmap) *roaring64.Bitmap) (Members, error)
	// ImportCohorts makes or changes cohorts by display name, all or none. resolve
	// gets the numbers of the project's cohorts by display name, the new ones
	// included, and returns the definitions in the order of list.
	ImportCohorts(ctx context.Context, project int64, list []Cohort, now time.Time, resolve func(ids map[string]int64) ([]*typev1.Expression, error)) ([]Cohort, error)
}

// Receiver keeps cohorts that another system sends.
type Receiver interface {
	// ExternalCohort returns the cohort of a source, and makes it at the first call.
	// revive makes it anew when it was deleted; else that is a NotFound fault. Its
	// display name and description become those of want, the name with the source
	// added while another cohort has it.
	ExternalCohort(ctx context.Context, project int64, source string, want Cohort, revive bool, now time.Time) (Cohort, error)
	// AddPage adds a page to a session. A page that came before changes nothing. A
	// session that was overtaken is a Conflict fault; a number of pages that differs
	// from that of the session's other pages is an Invalid fault.
	AddPage(ctx context.Context, project int64, p ExternalPage, now time.Time) (ExternalProgress, error)
}

// ExternalAction is what a session does to a cohort.
type ExternalAction int

// Actions; the values are those of the contract and stored.
const (
	ExternalReplace ExternalAction = 1
	ExternalAdd     ExternalAction = 2
	ExternalRemove  ExternalAction = 3
)

// ExternalPage is a page of a session.
type ExternalPage struct {
	Cohort  int64
	Session string
	Action  ExternalAction
	// Page counts from 1 to Pages.
	Page, Pages int
	Users       *roaring64.Bitmap
}

// ExternalProgress is how far a session is.
type ExternalProgress struct {
	// Pages are there; Complete says that all are, and the cohort is changed.
	Pages    int
	Complete bool
	// Total is how many users the cohort has.
	Total int64
}

// KeptSessions is how long sessions are kept, finished or not: twice as long as the
// sender's own snapshot (https://docs.mixpanel.com/docs/cohort-sync/webhooks).
const KeptSessions = 6 * 24 * time.Hour

// KeptEvaluations is how many evaluations of a cohort are kept: three weeks of one
// every 15 minutes.
const KeptEvaluations = 2000

// EvaluationRecord is an evaluation of the past.
type EvaluationRecord struct {
	AsOf              time.Time
	Users, Identified int64
	Took              time.Duration
	// Version is that of the definition.
	Version int32
	// Reason is empty, or why it failed; ReasonText is for people.
	Reason, ReasonText string
}

// Members are users that are kept for a cohort.
type Members struct {
	Users   *roaring64.Bitmap
	Updated time.Time
}
