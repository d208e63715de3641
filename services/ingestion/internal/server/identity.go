package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
)

// Identity serves IdentityService.
type Identity struct {
	ingestionv1.UnimplementedIdentityServiceServer
	// Ledger knows who is who.
	Ledger ledger.Ledger
}

var reasons = map[ledger.Reason]ingestionv1.LinkedId_Reason{
	ledger.FirstSeen: ingestionv1.LinkedId_REASON_FIRST_SEEN, ledger.DeviceLink: ingestionv1.LinkedId_REASON_DEVICE_LINK,
	ledger.Identify: ingestionv1.LinkedId_REASON_IDENTIFY, ledger.Alias: ingestionv1.LinkedId_REASON_ALIAS,
	ledger.MergeCall: ingestionv1.LinkedId_REASON_MERGE, ledger.PartnerAlias: ingestionv1.LinkedId_REASON_PARTNER_ALIAS,
}

// LookupIdentity shows all ids of a user, and why they are the user's.
func (s *Identity) LookupIdentity(ctx context.Context, req *ingestionv1.LookupIdentityRequest) (*ingestionv1.LookupIdentityResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	c, err := s.Ledger.Cluster(ctx, id, req.GetDistinctId(), req.GetIgnoreAlias())
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "no user has this id")
	}
	out := &ingestionv1.LookupIdentityResponse{UserNo: c.User.No, CanonicalId: c.User.DistinctID, Identified: c.Identified}
	for _, i := range c.IDs {
		why := identity.Explain(i.Reason)
		if i.Former != 0 {
			why += "; the user who was first seen with it keeps its earlier events and profile (ignore_alias shows them)"
		}
		out.Ids = append(out.Ids, &ingestionv1.LinkedId{Id: i.DistinctID, Reason: reasons[i.Reason], LinkTime: timestamppb.New(i.At), LinkedTo: i.LinkedTo, Explanation: why, FormerUserNo: i.Former})
	}
	for _, x := range c.Conflicts {
		out.Conflicts = append(out.Conflicts, &ingestionv1.IdentifierConflict{Property: x.Property, Value: x.Value, Owner: x.Owner})
	}
	return out, nil
}
