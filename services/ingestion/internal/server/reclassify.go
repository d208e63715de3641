package server

import (
	"context"
	"math"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
)

// CreateReclassification starts a job.
func (s *Usage) CreateReclassification(ctx context.Context, req *ingestionv1.CreateReclassificationRequest) (*ingestionv1.CreateReclassificationResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	j, err := s.Jobs.Create(ctx, id, req.GetFromDate(), req.GetToDate())
	if err != nil {
		return nil, err
	}
	return &ingestionv1.CreateReclassificationResponse{Reclassification: jobMessage(j)}, nil
}

var jobStates = map[ledger.JobState]ingestionv1.Reclassification_State{
	ledger.JobRunning: ingestionv1.Reclassification_STATE_RUNNING, ledger.JobSucceeded: ingestionv1.Reclassification_STATE_SUCCEEDED, ledger.JobFailed: ingestionv1.Reclassification_STATE_FAILED,
}

func jobMessage(j *ledger.Reclassification) *ingestionv1.Reclassification {
	date := func(day int32) string { return time.Unix(int64(day)*86_400, 0).UTC().Format(time.DateOnly) }
	out := &ingestionv1.Reclassification{
		Name: "projects/" + strconv.FormatInt(j.ProjectID, 10) + "/reclassifications/" + strconv.FormatInt(j.ID, 10), State: jobStates[j.State], RulesVersion: strconv.Itoa(j.RulesVersion),
		TotalEvents: j.Total, DoneEvents: j.Done, ChangedEvents: j.Changed, Error: j.Error, CreateTime: timestamppb.New(j.Created),
	}
	if j.FromDay > 0 {
		out.FromDate = date(j.FromDay)
	}
	if j.ToDay < math.MaxInt32 {
		out.ToDate = date(j.ToDay)
	}
	if !j.Ended.IsZero() {
		out.EndTime = timestamppb.New(j.Ended)
	}
	return out
}

func (s *Usage) job(ctx context.Context, name string) (*ledger.Reclassification, error) {
	ids, err := resource.IDs("name", name, "projects", "reclassifications")
	if err != nil {
		return nil, err
	}
	j, err := s.Ledger.GetReclassification(ctx, ids[0], ids[1])
	if err == nil && j == nil {
		err = fault.New(fault.NotFound, "RECLASSIFICATION_NOT_FOUND", "no such reclassification")
	}
	return j, err
}

// GetReclassification returns a job.
func (s *Usage) GetReclassification(ctx context.Context, req *ingestionv1.GetReclassificationRequest) (*ingestionv1.GetReclassificationResponse, error) {
	j, err := s.job(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &ingestionv1.GetReclassificationResponse{Reclassification: jobMessage(j)}, nil
}

// ListReclassifications returns a project's jobs, newest first.
func (s *Usage) ListReclassifications(ctx context.Context, req *ingestionv1.ListReclassificationsRequest) (*ingestionv1.ListReclassificationsResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	list, err := s.Ledger.ListReclassifications(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.ListReclassificationsResponse{}
	for i := range list {
		out.Reclassifications = append(out.Reclassifications, jobMessage(&list[i]))
	}
	return out, nil
}

// watchEvery is how often a watched job is looked at.
const watchEvery = 200 * time.Millisecond

// WatchReclassification sends the job whenever it has got on, until it ends.
func (s *Usage) WatchReclassification(req *ingestionv1.WatchReclassificationRequest, stream grpc.ServerStreamingServer[ingestionv1.WatchReclassificationResponse]) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last ledger.Reclassification
	for {
		j, err := s.job(stream.Context(), req.GetName())
		if err != nil {
			return err
		}
		if *j != last {
			last = *j
			if err := stream.Send(&ingestionv1.WatchReclassificationResponse{Reclassification: jobMessage(j)}); err != nil {
				return err
			}
		}
		if j.State != ledger.JobRunning {
			return nil
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
