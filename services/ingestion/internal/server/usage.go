package server

import (
	"context"
	"strconv"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Usage serves UsageService.
type Usage struct {
	ingestionv1.UnimplementedUsageServiceServer
	// Registry knows how a project counts; Warehouse and Feeder are what is read.
	Registry  project.Registry
	Warehouse warehouse.Warehouse
	Feeder    *feed.Feeder
	// Rules are the rules that judge events now.
	Rules *mtu.Rules
	// Now tells the current month.
	Now project.Clock
}

// GetUsage reports a month.
func (s *Usage) GetUsage(ctx context.Context, req *ingestionv1.GetUsageRequest) (*ingestionv1.GetUsageResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	p, err := s.Registry.ByID(ctx, id)
	if err != nil {
		return nil, err
	}
	month := req.GetMonth()
	if month == "" {
		month = s.Now().UTC().Format("2006-01")
	}
	from, err := time.Parse("2006-01", month)
	if err != nil {
		return nil, fault.Field("month", "must be yyyy-mm")
	}
	var u *warehouse.Usage
	if err := s.Feeder.Read(ctx, id, func() error {
		u, err = s.Warehouse.Usage(ctx, warehouse.UsageQuery{ProjectID: id, FromMS: from.UnixMilli(), ToMS: from.AddDate(0, 1, 0).UnixMilli(), ByEventTime: p.MTU.ByEventTime})
		return err
	}); err != nil {
		return nil, err
	}
	count, guarded := mtu.Count(u.Users, u.Guardrail)
	return &ingestionv1.GetUsageResponse{
		Month: month, Mtu: count, Users: u.Users, QualifyingEvents: u.Qualifying, ExemptEvents: u.Exempt, ExemptByRule: u.ExemptByRule,
		ExemptOnlyUsers: u.ExemptOnly, RulesVersion: strconv.Itoa(s.Rules.Version), Guardrail: guarded, EventsBySource: u.BySource,
	}, nil
}

// ListMtuRules returns the rules that exempt events.
func (s *Usage) ListMtuRules(context.Context, *ingestionv1.ListMtuRulesRequest) (*ingestionv1.ListMtuRulesResponse, error) {
	out := &ingestionv1.ListMtuRulesResponse{Version: strconv.Itoa(s.Rules.Version)}
	for _, r := range s.Rules.Rules {
		out.Rules = append(out.Rules, &ingestionv1.MtuRule{Id: r.ID, Source: r.Source, Events: append(append([]string{}, r.Events...), r.Notes...), MarkerProperty: r.Marker, MarkerValues: r.Values})
	}
	return out, nil
}
