package channel

import (
	"context"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// partner sends Mixpanel's cohort messages; the segment shows as Type
// "Partner - Mixpanel".
type partner struct {
	cfg     Config
	columns []column
}

// NewPartner returns the partner channel.
func NewPartner(cfg Config) Channel { return &partner{cfg: cfg, columns: prepare(cfg.Columns)} }

// Name implements Channel.
func (p *partner) Name() string { return "PARTNER" }

// Traits implements Channel.
func (p *partner) Traits() Traits {
	return Traits{MaxRecords: 1000, MaxBytes: clevertap.MaxUploadBytes, Concurrency: 15, Group: "partner", RemovesByCall: true, FullReplaces: true}
}

// Encode implements Channel.
func (p *partner) Encode(m Member) (Encoded, string) {
	id, skip := identify(m)
	if skip != "" {
		return Encoded{}, skip
	}
	b := make([]byte, 0, 192)
	b = append(b, `{"mixpanel_distinct_id":`...)
	b = append(b, quote(m.DistinctID)...)
	if id == m.PartnerID {
		b = append(b, `,"$CleverTap_user_id":`...)
		b = append(b, quote(id)...)
	}
	b, warnings := fields(b, p.columns, m.Columns, false)
	return Encoded{Identifier: id, Record: append(b, '}'), Warnings: warnings}, ""
}

// Removal names the identifier in both places a receiver may look: what counts
// is the identity that was sent, not what the profile says now.
func (p *partner) Removal(identifier string) []byte {
	q := quote(identifier)
	b := make([]byte, 0, 2*len(q)+64)
	b = append(b, `{"mixpanel_distinct_id":`...)
	b = append(b, q...)
	b = append(b, `,"$CleverTap_user_id":`...)
	b = append(b, q...)
	return append(b, '}')
}

// Send implements Channel.
func (p *partner) Send(ctx context.Context, s Segment, b Batch) ([]Refusal, error) {
	action := "add_members"
	switch {
	case b.Op == Remove:
		action = "remove_members"
	case b.Replace:
		action = "members"
	}
	return nil, p.cfg.Client.SendPage(ctx, p.cfg.Account, clevertap.Page{
		Action: action, ProjectID: s.ProjectID, CohortID: s.CohortID, CohortName: s.Name, CohortDescription: s.Description,
		SessionID: b.SessionID, Page: b.Page, Pages: b.Pages, Members: b.Records,
	})
}
