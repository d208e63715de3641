package ledger

import (
	"context"
	"time"
)

// JobState is how far a job is. The numbers are stored.
type JobState uint8

// The states of a job.
const (
	JobRunning   JobState = 1
	JobSucceeded JobState = 2
	JobFailed    JobState = 3
)

// Reclassification is a job that judges the stored events of a project again.
type Reclassification struct {
	// ProjectID and ID name it; ID counts from 1 within the project.
	ProjectID, ID int64
	// State is how far it is.
	State JobState
	// FromDay and ToDay are the first and last UTC day of event time, counted from
	// 1970-01-01; NextDay is the first that is not done.
	FromDay, ToDay, NextDay int32
	// RulesVersion is the version of the rules it applies.
	RulesVersion int
	// Total, Done and Changed count events: to look at, looked at, given another verdict.
	Total, Done, Changed int64
	// Error is the public text of why it failed.
	Error string
	// Created and Ended are when; Ended is zero while it runs.
	Created, Ended time.Time
}

// Reclassifications keeps jobs.
type Reclassifications interface {
	// CreateReclassification stores a new job and gives it its ID. ok is false when
	// another job of the project runs; nothing is stored then.
	CreateReclassification(ctx context.Context, j *Reclassification) (ok bool, err error)
	// PutReclassification stores how far a job is.
	PutReclassification(ctx context.Context, j *Reclassification) error
	// ListReclassifications returns a project's jobs, newest first; of all projects
	// the running ones when projectID is 0. At most 100.
	ListReclassifications(ctx context.Context, projectID int64) ([]Reclassification, error)
	// GetReclassification returns one job, nil when there is none.
	GetReclassification(ctx context.Context, projectID, id int64) (*Reclassification, error)
}
