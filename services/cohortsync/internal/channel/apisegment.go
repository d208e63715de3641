package channel

import (
	"context"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// apiSegment upserts profiles by upload and then adds and removes users by name in
// a segment that is made once; it shows as Type "API Segments".
type apiSegment struct{ profiles }

// NewAPISegment returns the API segment channel.
func NewAPISegment(cfg Config) Preparer {
	return &apiSegment{profiles{cfg: cfg, columns: prepare(cfg.Columns)}}
}

// Name implements Channel.
func (c *apiSegment) Name() string { return "API_SEGMENT" }

// Traits implements Channel. CleverTap takes three of these calls at once; one is
// left to the account's other jobs.
func (c *apiSegment) Traits() Traits {
	return Traits{MaxRecords: clevertap.MaxSegmentUsers, MaxBytes: clevertap.MaxUploadBytes - 64, Concurrency: 2, Group: "segment", RemovesByCall: true}
}

// Key is the segment's customer_segment_id. It stays when the cohort is renamed.
func (c *apiSegment) key(s Segment) string { return "cohortbridge_" + s.ProjectID + "_" + s.CohortID }

// Open implements Preparer.
func (c *apiSegment) Open(ctx context.Context, s Segment) error {
	return c.cfg.Client.CreateSegment(ctx, c.cfg.Account, c.key(s), s.Name)
}

// PrepareTraits implements Preparer.
func (c *apiSegment) PrepareTraits() Traits {
	return Traits{Concurrency: 15, Group: "upload"}
}

// Prepare implements Preparer.
func (c *apiSegment) Prepare(ctx context.Context, records [][]byte) ([]Refusal, error) {
	return c.upload(ctx, records)
}

// Removal implements Channel.
func (c *apiSegment) Removal(identifier string) []byte {
	return append(append([]byte(`{"identity":`), quote(identifier)...), '}')
}

// Send implements Channel. Nothing is said of single users: what CleverTap passes
// over is in its Error Stream.
func (c *apiSegment) Send(ctx context.Context, s Segment, b Batch) ([]Refusal, error) {
	users := make([][]byte, 0, len(b.Identifiers))
	for _, id := range b.Identifiers {
		users = append(users, c.Removal(id))
	}
	return nil, c.cfg.Client.UpdateSegment(ctx, c.cfg.Account, c.key(s), b.Op == Remove, users)
}
