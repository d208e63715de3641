package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// Receiver serves ReceiverService.
type Receiver struct {
	cohortsyncv1.UnimplementedReceiverServiceServer
	// Store keeps sessions and members.
	Store store.Receiver
	// Users knows who ids are.
	Users engine.Users
	// Now is the clock.
	Now func() time.Time
}

func cut(s string, n int) string {
	r := []rune(s)
	return string(r[:min(len(r), n)])
}

// ReceiveMembers implements cohortsyncv1.ReceiverServiceServer.
func (s *Receiver) ReceiveMembers(ctx context.Context, req *cohortsyncv1.ReceiveMembersRequest) (*cohortsyncv1.ReceiveMembersResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	if req.GetPageCount() > req.GetTotalPages() {
		return nil, fault.Field("page_count", "is %d of %d pages", req.GetPageCount(), req.GetTotalPages())
	}
	source := req.GetMixpanelProjectId() + "/" + req.GetMixpanelCohortId()
	name := cut(strings.TrimSpace(req.GetMixpanelCohortName()), 100)
	if name == "" {
		name = fmt.Sprintf("Mixpanel cohort %s", cut(source, 80))
	}
	want := store.Cohort{DisplayName: name, Description: cut(req.GetMixpanelCohortDescription(), 1000)}
	action := store.ExternalAction(req.GetAction())
	c, err := s.Store.ExternalCohort(ctx, ids[0], source, want, action == store.ExternalReplace, s.Now())
	if err != nil {
		return nil, err
	}
	// Who they are, and what is known of them, comes before who is in: a page that is
	// sent again changes neither.
	users := roaring64.New()
	var refused []int
	if list := req.GetMembers(); len(list) > 0 {
		people, properties := make([]string, len(list)), make([][]byte, len(list))
		for i, m := range list {
			people[i] = m.GetDistinctId()
			if action != store.ExternalRemove {
				properties[i] = m.GetProperties()
			}
		}
		if users, refused, err = s.Users.Assign(ctx, ids[0], people, properties); err != nil {
			return nil, err
		}
	}
	p, err := s.Store.AddPage(ctx, ids[0], store.ExternalPage{
		Cohort: c.ID, Session: req.GetMixpanelSessionId(), Action: action, Page: int(req.GetPageCount()), Pages: int(req.GetTotalPages()), Users: users,
	}, s.Now())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.ReceiveMembersResponse{
		Cohort: resource.Name("projects", ids[0], "cohorts", c.ID), ReceivedPages: int32(p.Pages), Complete: p.Complete, Refused: int32(len(refused)), Total: p.Total, //nolint:gosec // bounded by the contract
	}, nil
}
