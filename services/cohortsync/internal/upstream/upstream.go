// Package upstream reaches the services cohortsync depends on: ingestion for
// who is in a cohort and what is exported of them, registry for connectors and
// their credentials.
package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
)

// maxMessage is the largest message taken from a service: the bitmap of tens
// of millions of scattered users.
const maxMessage = 256 << 20

// Users asks ingestion's EvaluationService. It is an engine.Users.
type Users struct {
	// Client reaches the service.
	Client ingestionv1.EvaluationServiceClient
}

var _ engine.Users = Users{}

func parent(project int64) string { return "projects/" + strconv.FormatInt(project, 10) }

// toFault keeps what kind of failure it was, and not its text: another
// service's text is not ours to show.
func toFault(what string, err error) error {
	if err == nil {
		return nil
	}
	code, reason := fault.Internal, "UPSTREAM_FAILED"
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted:
		code, reason = fault.Unavailable, "UPSTREAM_UNAVAILABLE"
	case codes.Canceled:
		code, reason = fault.Cancelled, "CANCELLED"
	case codes.InvalidArgument:
		return fault.New(fault.Invalid, "UPSTREAM_REFUSED", "%s: %s", what, status.Convert(err).Message()).Wrap(err)
	case codes.NotFound:
		code, reason = fault.NotFound, "NOT_FOUND"
	default:
	}
	return fault.New(code, reason, "%s failed (%s)", what, status.Code(err)).Wrap(err)
}

func decodeSet(s *ingestionv1.UserSet) (*roaring64.Bitmap, error) {
	set, err := ledger.UnmarshalSet(s.GetRoaring())
	if err != nil {
		return nil, err
	}
	if set.GetCardinality() != s.GetCount() {
		return nil, fmt.Errorf("user set has %d users, %d were announced", set.GetCardinality(), s.GetCount())
	}
	return set, nil
}

// AnswerLeaves implements cohort.Answerer. An answer without its last message,
// the watermark, is a failure: it must not pass for a small cohort.
func (u Users) AnswerLeaves(ctx context.Context, project int64, leaves []cohort.Leaf, asOf time.Time) (*cohort.Answers, error) {
	const what = "evaluating the cohort's conditions"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &ingestionv1.EvaluateLeavesRequest{Parent: parent(project), AsOf: timestamppb.New(asOf)}
	for _, l := range leaves {
		m, err := leafMessage(l)
		if err != nil {
			return nil, err
		}
		req.Leaves = append(req.Leaves, m)
	}
	st, err := u.Client.EvaluateLeaves(ctx, req, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return nil, toFault(what, err)
	}
	ans := &cohort.Answers{Users: make([]*roaring64.Bitmap, len(leaves)), Took: make([]time.Duration, len(leaves))}
	complete := false
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, toFault(what, err)
		}
		switch a := m.GetAnswer().(type) {
		case *ingestionv1.EvaluateLeavesResponse_Leaf:
			i := int(a.Leaf.GetIndex())
			if i < 0 || i >= len(leaves) {
				return nil, incomplete(fmt.Errorf("leaf %d of %d", i, len(leaves)))
			}
			if ans.Users[i], err = decodeSet(a.Leaf.GetUsers()); err != nil {
				return nil, incomplete(err)
			}
			ans.Took[i] = a.Leaf.GetDuration().AsDuration()
		case *ingestionv1.EvaluateLeavesResponse_Identified:
			if ans.Identified, err = decodeSet(a.Identified); err != nil {
				return nil, incomplete(err)
			}
		case *ingestionv1.EvaluateLeavesResponse_Watermark:
			ans.ProfileSeq, complete = a.Watermark.GetProfileSeq(), true
		}
	}
	for _, s := range ans.Users {
		complete = complete && s != nil
	}
	if !complete || ans.Identified == nil {
		return nil, incomplete(nil)
	}
	return ans, nil
}

func leafMessage(l cohort.Leaf) (*ingestionv1.Leaf, error) {
	switch {
	case l.Behavior != nil:
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Behavior{Behavior: l.Behavior}}, nil
	case l.Sequence != nil:
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Sequence{Sequence: l.Sequence}}, nil
	case l.IDs != nil:
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Ids{Ids: l.IDs}}, nil
	case l.Users != nil:
		b, err := ledger.MarshalSet(l.Users)
		return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Users{Users: &ingestionv1.UserSet{Roaring: b, Count: l.Users.GetCardinality()}}}, err
	}
	return &ingestionv1.Leaf{Leaf: &ingestionv1.Leaf_Property{Property: l.Property}}, nil
}

func incomplete(cause error) error {
	return fault.New(fault.Unavailable, "EVALUATION_INCOMPLETE", "the evaluation's answer is not complete").Wrap(cause)
}

// ChangedUsers implements engine.Users.
func (u Users) ChangedUsers(ctx context.Context, project int64, since, until uint64) (*roaring64.Bitmap, error) {
	const what = "reading changed users"
	resp, err := u.Client.ListChangedUsers(ctx, &ingestionv1.ListChangedUsersRequest{Parent: parent(project), SinceSeq: since, UntilSeq: until}, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return nil, toFault(what, err)
	}
	set, err := decodeSet(resp.GetUsers())
	if err != nil {
		return nil, fault.New(fault.Unavailable, "UPSTREAM_FAILED", "%s failed", what).Wrap(err)
	}
	return set, nil
}

// Resolve implements engine.Users.
func (u Users) Resolve(ctx context.Context, project int64, users *roaring64.Bitmap, columns []string, partnerProperty string, each func(m channel.Member, identified bool) error) error {
	const what = "reading members"
	var b bytes.Buffer
	if _, err := users.WriteTo(&b); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := u.Client.ResolveMembers(ctx, &ingestionv1.ResolveMembersRequest{Parent: parent(project), Roaring: b.Bytes(), Columns: columns, PartnerProperty: partnerProperty}, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return toFault(what, err)
	}
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return toFault(what, err)
		}
		for _, x := range m.GetMembers() {
			if err := each(channel.Member{UserNo: x.GetUserNo(), DistinctID: x.GetDistinctId(), PartnerID: x.GetPartnerId(), PartnerIDConflict: x.GetPartnerIdConflict(), PartnerIDInvalid: x.GetPartnerIdInvalid(), Columns: x.GetColumns()}, x.GetIdentified()); err != nil {
				return err
			}
		}
	}
}

// assignChunk is how many ids one call names.
const assignChunk = 10_000

// Assign implements engine.Users.
func (u Users) Assign(ctx context.Context, project int64, ids []string, properties [][]byte) (users *roaring64.Bitmap, refused []int, err error) {
	const what = "looking up ids"
	users = roaring64.New()
	for from := 0; from < len(ids); from += assignChunk {
		part := ids[from:min(len(ids), from+assignChunk)]
		req := &ingestionv1.AssignUsersRequest{Parent: parent(project), DistinctIds: part}
		if properties != nil {
			req.Properties = properties[from : from+len(part)]
		}
		resp, err := u.Client.AssignUsers(ctx, req, grpc.MaxCallRecvMsgSize(maxMessage))
		if err != nil {
			return nil, nil, toFault(what, err)
		}
		set, err := decodeSet(resp.GetUsers())
		if err != nil {
			return nil, nil, fault.New(fault.Unavailable, "UPSTREAM_FAILED", "%s failed", what).Wrap(err)
		}
		users.Or(set)
		for _, i := range resp.GetRefused() {
			refused = append(refused, from+int(i))
		}
	}
	return users, refused, nil
}
