package server

import (
	"context"
	"strconv"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// Syncs serves SyncService.
type Syncs struct {
	cohortsyncv1.UnimplementedSyncServiceServer
	// Store keeps syncs and runs.
	Store store.Store
	// Connectors finds destinations.
	Connectors engine.Connectors
	// Enqueue gets a run worked on.
	Enqueue func(ctx context.Context, run int64)
	// Cancel stops a run that this process works on.
	Cancel func(run int64)
	// DryRun says what a run would do.
	DryRun func(ctx context.Context, s store.Sync, full bool) (*engine.DryRun, error)
	// Interval is that of dynamic syncs that give none; MaxDynamic is how many a project may have.
	Interval   time.Duration
	MaxDynamic int
	// Now is the clock.
	Now func() time.Time
}

func (s *Syncs) get(ctx context.Context, name string) (store.Sync, error) {
	ids, err := resource.IDs("name", name, "projects", "syncs")
	if err != nil {
		return store.Sync{}, err
	}
	return s.Store.Sync(ctx, ids[0], ids[1])
}

func (s *Syncs) message(ctx context.Context, x store.Sync) (*cohortsyncv1.Sync, error) {
	last, err := s.Store.LastRun(ctx, x.ID)
	if err != nil {
		return nil, err
	}
	return syncMessage(x, last), nil
}

// run asks for a run in the caller's trace.
func (s *Syncs) run(ctx context.Context, x store.Sync, full bool) (store.Run, error) {
	r, _, err := s.Store.CreateRun(ctx, x.ProjectID, x.ID, store.ByRequest, full, engine.Traceparent(ctx), s.Now())
	if err != nil {
		return r, err
	}
	s.Enqueue(ctx, r.ID)
	return r, nil
}

// CreateSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) CreateSync(ctx context.Context, req *cohortsyncv1.CreateSyncRequest) (*cohortsyncv1.CreateSyncResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	in := req.GetSync()
	cids, err := resource.IDs("sync.cohort", in.GetCohort(), "projects", "cohorts")
	if err != nil {
		return nil, err
	}
	kids, err := resource.IDs("sync.connector", in.GetConnector(), "projects", "connectors")
	if err != nil {
		return nil, err
	}
	switch {
	case cids[0] != ids[0]:
		return nil, fault.Field("sync.cohort", "is not of the project in parent")
	case kids[0] != ids[0]:
		return nil, fault.Field("sync.connector", "is not of the project in parent")
	}
	now := s.Now()
	x := store.Sync{ProjectID: ids[0], CohortID: cids[1], ConnectorID: kids[1], Mode: store.Mode(in.GetMode()), Created: now, Origin: engine.Traceparent(ctx)}
	switch x.Mode {
	case store.OneTime:
		if in.GetInterval() != nil {
			return nil, fault.Field("sync.interval", "goes with DYNAMIC only")
		}
	case store.Dynamic:
		x.Interval = s.Interval
		if in.GetInterval() != nil {
			x.Interval = in.GetInterval().AsDuration()
		}
		if x.Interval < time.Minute || x.Interval > 24*time.Hour {
			return nil, fault.Field("sync.interval", "must be 1 minute to 24 hours")
		}
		x.NextRun = now.Add(x.Interval)
	default:
		return nil, fault.Field("sync.mode", "must be ONE_TIME or DYNAMIC")
	}
	if _, err := s.Store.Cohort(ctx, x.ProjectID, x.CohortID); err != nil {
		return nil, err
	}
	if _, err := s.Connectors.Resolve(ctx, x.ProjectID, x.ConnectorID); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", "connector %d does not exist", x.ConnectorID)
		}
		return nil, err
	}
	if x, err = s.Store.CreateSync(ctx, x, req.GetRequestId(), s.MaxDynamic); err != nil {
		return nil, err
	}
	resp := &cohortsyncv1.CreateSyncResponse{}
	last, err := s.Store.LastRun(ctx, x.ID)
	if err != nil {
		return nil, err
	}
	if !req.GetSkipFirstRun() {
		if last == nil { // a repeated create has its first run already
			r, err := s.run(ctx, x, false)
			if err != nil {
				return nil, err
			}
			last = &r
		}
		resp.Run = runMessage(*last)
	}
	resp.Sync = syncMessage(x, last)
	return resp, nil
}

// GetSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) GetSync(ctx context.Context, req *cohortsyncv1.GetSyncRequest) (*cohortsyncv1.GetSyncResponse, error) {
	x, err := s.get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	m, err := s.message(ctx, x)
	return &cohortsyncv1.GetSyncResponse{Sync: m}, err
}

// ListSyncs implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) ListSyncs(ctx context.Context, req *cohortsyncv1.ListSyncsRequest) (*cohortsyncv1.ListSyncsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Store.ListSyncs(ctx, ids[0], after, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(x store.Sync) int64 { return x.ID })
	resp := &cohortsyncv1.ListSyncsResponse{NextPageToken: next}
	for _, x := range list {
		m, err := s.message(ctx, x)
		if err != nil {
			return nil, err
		}
		resp.Syncs = append(resp.Syncs, m)
	}
	return resp, nil
}

// DeleteSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) DeleteSync(ctx context.Context, req *cohortsyncv1.DeleteSyncRequest) (*emptypb.Empty, error) {
	x, err := s.get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	last, err := s.Store.LastRun(ctx, x.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Store.DeleteSync(ctx, x.ProjectID, x.ID, s.Now()); err != nil {
		return nil, err
	}
	if last != nil {
		s.Cancel(last.ID)
	}
	return &emptypb.Empty{}, nil
}

// PauseSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) PauseSync(ctx context.Context, req *cohortsyncv1.PauseSyncRequest) (*cohortsyncv1.PauseSyncResponse, error) {
	x, err := s.get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	switch x.State {
	case store.SyncCompleted:
		return nil, fault.New(fault.Precondition, "SYNC_COMPLETED", "the sync is completed; there is nothing to pause")
	case store.SyncPaused: // stays as it is, with its first reason
	case store.SyncActive:
		p := &store.Pause{Reason: store.PauseRequested, Text: req.GetText(), Actor: actor(ctx), Since: s.Now()}
		if err := s.Store.SetSyncState(ctx, x.ProjectID, x.ID, store.SyncPaused, p, time.Time{}); err != nil {
			return nil, err
		}
	}
	if x, err = s.get(ctx, req.GetName()); err != nil {
		return nil, err
	}
	m, err := s.message(ctx, x)
	return &cohortsyncv1.PauseSyncResponse{Sync: m}, err
}

func actor(ctx context.Context) string {
	if p := auth.FromContext(ctx); p != nil {
		return p.Name
	}
	return "unknown"
}

// ResumeSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) ResumeSync(ctx context.Context, req *cohortsyncv1.ResumeSyncRequest) (*cohortsyncv1.ResumeSyncResponse, error) {
	x, err := s.get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if x.State != store.SyncPaused {
		return nil, fault.New(fault.Precondition, "SYNC_NOT_PAUSED", "the sync is not paused")
	}
	next := time.Time{}
	if x.Mode == store.Dynamic {
		next = s.Now().Add(x.Interval)
	}
	if err := s.Store.SetSyncState(ctx, x.ProjectID, x.ID, store.SyncActive, nil, next); err != nil {
		return nil, err
	}
	r, err := s.run(ctx, x, false)
	if err != nil {
		return nil, err
	}
	if x, err = s.get(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &cohortsyncv1.ResumeSyncResponse{Sync: syncMessage(x, &r), Run: runMessage(r)}, nil
}

// DryRunSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) DryRunSync(ctx context.Context, req *cohortsyncv1.DryRunSyncRequest) (*cohortsyncv1.DryRunSyncResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	x := store.Sync{ProjectID: ids[0], Mode: store.Dynamic, State: store.SyncActive, Ledger: store.LedgerState{Dirty: roaring64.New()}}
	switch unsaved := req.GetCohort() != "" && req.GetConnector() != ""; {
	case req.GetSync() != "" && (req.GetCohort() != "" || req.GetConnector() != ""), req.GetSync() == "" && !unsaved:
		return nil, fault.Field("sync", "give a sync, or a cohort and a connector")
	case unsaved:
		if x.CohortID, err = idIn(ids[0], "cohort", req.GetCohort(), "cohorts"); err != nil {
			return nil, err
		}
		if x.ConnectorID, err = idIn(ids[0], "connector", req.GetConnector(), "connectors"); err != nil {
			return nil, err
		}
	default:
		id, err := idIn(ids[0], "sync", req.GetSync(), "syncs")
		if err != nil {
			return nil, err
		}
		if x, err = s.Store.Sync(ctx, ids[0], id); err != nil {
			return nil, err
		}
	}
	d, err := s.DryRun(ctx, x, req.GetFull())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.DryRunSyncResponse{
		Evaluation: evaluation(&d.Evaluation), Channel: d.Channel, Full: d.Full, BlockedText: d.Blocked, RefusedText: d.TooLarge, Added: d.Added, Updated: d.Updated, Removed: d.Removed,
		Unchanged: d.Unchanged, Skipped: d.Skipped, SkippedByReason: d.SkippedBy, Warnings: d.Warnings, Calls: d.Calls, DataPoints: d.DataPoints,
	}, nil
}

// idIn is the number of a resource that must be of a project.
func idIn(project int64, field, name, collection string) (int64, error) {
	ids, err := resource.IDs(field, name, "projects", collection)
	if err != nil {
		return 0, err
	}
	if ids[0] != project {
		return 0, fault.Field(field, "is not of the project in parent")
	}
	return ids[1], nil
}

// RunSync implements cohortsyncv1.SyncServiceServer.
func (s *Syncs) RunSync(ctx context.Context, req *cohortsyncv1.RunSyncRequest) (*cohortsyncv1.RunSyncResponse, error) {
	x, err := s.get(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if x.State == store.SyncPaused {
		return nil, fault.New(fault.Precondition, "SYNC_PAUSED", "the sync is paused (%s); resume it first", x.Pause.Reason)
	}
	r, err := s.run(ctx, x, req.GetFull())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.RunSyncResponse{Run: runMessage(r)}, nil
}

// Runs serves RunService.
type Runs struct {
	cohortsyncv1.UnimplementedRunServiceServer
	// Store keeps runs.
	Store store.Store
	// Engine knows their users and who watches.
	Engine *engine.Engine
	// Enqueue gets a run worked on.
	Enqueue func(ctx context.Context, run int64)
	// Now is the clock.
	Now func() time.Time
}

func (s *Runs) get(ctx context.Context, field, name string) (store.Run, error) {
	ids, err := resource.IDs(field, name, "projects", "syncs", "runs")
	if err != nil {
		return store.Run{}, err
	}
	return s.Store.Run(ctx, ids[0], ids[1], ids[2])
}

// GetRun implements cohortsyncv1.RunServiceServer.
func (s *Runs) GetRun(ctx context.Context, req *cohortsyncv1.GetRunRequest) (*cohortsyncv1.GetRunResponse, error) {
	r, err := s.get(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.GetRunResponse{Run: runMessage(r)}, nil
}

// ListRuns implements cohortsyncv1.RunServiceServer.
func (s *Runs) ListRuns(ctx context.Context, req *cohortsyncv1.ListRunsRequest) (*cohortsyncv1.ListRunsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects", "syncs")
	if err != nil {
		return nil, err
	}
	before, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Store.ListRuns(ctx, ids[0], ids[1], before, size+1)
	if err != nil {
		return nil, err
	}
	resp := &cohortsyncv1.ListRunsResponse{}
	if len(list) > size {
		list = list[:size]
		resp.NextPageToken = strconv.FormatInt(list[size-1].ID, 10)
	}
	for _, r := range list {
		resp.Runs = append(resp.Runs, runMessage(r))
	}
	return resp, nil
}

// watchPoll is how often a watched run is read although nobody said it changed:
// it may be worked on by another process.
const watchPoll = time.Second

// WatchRun implements cohortsyncv1.RunServiceServer.
func (s *Runs) WatchRun(req *cohortsyncv1.WatchRunRequest, st grpc.ServerStreamingServer[cohortsyncv1.WatchRunResponse]) error {
	ctx := st.Context()
	r, err := s.get(ctx, "name", req.GetName())
	if err != nil {
		return err
	}
	changed, done := s.Engine.Hub.Watch(r.ID)
	defer done()
	t := time.NewTicker(watchPoll)
	defer t.Stop()
	var last store.Run
	for first := true; ; first = false {
		if r, err = s.get(ctx, "name", req.GetName()); err != nil {
			return err
		}
		if first || r.State != last.State || r.Totals.BatchesDone != last.Totals.BatchesDone || r.Totals.Calls != last.Totals.Calls || r.Attempts != last.Attempts {
			if err := st.Send(&cohortsyncv1.WatchRunResponse{Run: runMessage(r)}); err != nil {
				return err
			}
			last = r
		}
		// A blocked run waits for a person: the watcher has nothing to wait for.
		if r.State.Final() || r.State == store.Blocked {
			return nil
		}
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CancelRun implements cohortsyncv1.RunServiceServer.
func (s *Runs) CancelRun(ctx context.Context, req *cohortsyncv1.CancelRunRequest) (*cohortsyncv1.CancelRunResponse, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "syncs", "runs")
	if err != nil {
		return nil, err
	}
	r, err := s.Store.RequestCancel(ctx, ids[0], ids[1], ids[2], s.Now())
	if err != nil {
		return nil, err
	}
	s.Engine.Cancel(r.ID)
	return &cohortsyncv1.CancelRunResponse{Run: runMessage(r)}, nil
}

// ApproveRun implements cohortsyncv1.RunServiceServer.
func (s *Runs) ApproveRun(ctx context.Context, req *cohortsyncv1.ApproveRunRequest) (*cohortsyncv1.ApproveRunResponse, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "syncs", "runs")
	if err != nil {
		return nil, err
	}
	r, err := s.Store.Approve(ctx, ids[0], ids[1], ids[2])
	if err != nil {
		return nil, err
	}
	s.Enqueue(ctx, r.ID)
	return &cohortsyncv1.ApproveRunResponse{Run: runMessage(r)}, nil
}

// ListRunUsers implements cohortsyncv1.RunServiceServer.
func (s *Runs) ListRunUsers(ctx context.Context, req *cohortsyncv1.ListRunUsersRequest) (*cohortsyncv1.ListRunUsersResponse, error) {
	r, err := s.get(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	users, next, err := s.Engine.Users(ctx, r.ID, store.Outcome(req.GetOutcome()), req.GetPageToken(), resource.PageSize(req.GetPageSize(), 1000, 10000))
	if err != nil {
		return nil, err
	}
	resp := &cohortsyncv1.ListRunUsersResponse{NextPageToken: next}
	for _, u := range users {
		resp.Users = append(resp.Users, userMessage(u))
	}
	return resp, nil
}
