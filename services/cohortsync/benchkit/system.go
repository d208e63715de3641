package benchkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/rpc"

	"github.com/cohortbridge/cohortbridge/services/cohortsync"
)

const internalKey = "benchkit"

// System is cohortsync and a World, over gRPC in process with the product's
// interceptors.
type System struct {
	// World answers for ingestion and registry.
	World *World
	// Cohorts, Syncs and Runs are clients of the service.
	Cohorts cohortsyncv1.CohortServiceClient
	Syncs   cohortsyncv1.SyncServiceClient
	Runs    cohortsyncv1.RunServiceClient

	service *cohortsync.Service
	closers []func(context.Context) error
}

// Start starts cohortsync with the config. Close it when done.
func Start(ctx context.Context, cfg cohortsync.Config, w *World, log *slog.Logger) (_ *System, err error) {
	s := &System{World: w}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	up, err := s.serve(w)
	if err != nil {
		return nil, err
	}
	s.service, err = cohortsync.New(ctx, cfg, cohortsync.Deps{Evaluation: ingestionv1.NewEvaluationServiceClient(up), Credentials: registryv1.NewCredentialServiceClient(up), Log: log})
	if err != nil {
		return nil, err
	}
	conn, err := s.serve(s.service)
	if err != nil {
		return nil, err
	}
	s.Cohorts, s.Syncs, s.Runs = cohortsyncv1.NewCohortServiceClient(conn), cohortsyncv1.NewSyncServiceClient(conn), cohortsyncv1.NewRunServiceClient(conn)
	return s, s.service.Start(ctx)
}

func (s *System) serve(r interface{ Register(grpc.ServiceRegistrar) }) (grpc.ClientConnInterface, error) {
	in := rpc.NewInProcess()
	if err := in.Guard(&auth.Guard{InternalKey: internalKey}); err != nil {
		return nil, err
	}
	r.Register(in)
	s.closers = append(s.closers, in.Close)
	return in.Dial(auth.InternalCredentials{Key: internalKey}), nil
}

// Close drains the service and stops the servers.
func (s *System) Close(ctx context.Context) error {
	var err error
	if s.service != nil {
		err = s.service.Close(ctx)
	}
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i](ctx))
	}
	return err
}

// Did is a definition with one behaviour leaf, which World knows by the event's name.
func Did(event string) *typev1.Expression {
	return &typev1.Expression{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{event}}}}
}

// CreateSync makes a cohort of a leaf and a sync of it, without its first run.
func (s *System) CreateSync(ctx context.Context, leaf string, connector int64, mode cohortsyncv1.Sync_Mode) (*cohortsyncv1.Sync, error) {
	c, err := s.Cohorts.CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "Cohort of " + leaf, Definition: Did(leaf)}})
	if err != nil {
		return nil, err
	}
	resp, err := s.Syncs.CreateSync(ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", SkipFirstRun: true, Sync: &cohortsyncv1.Sync{
		Cohort: c.GetCohort().GetName(), Connector: fmt.Sprintf("projects/1/connectors/%d", connector), Mode: mode}})
	return resp.GetSync(), err
}

// Run asks for a run and watches it to its end.
func (s *System) Run(ctx context.Context, sync string) (*cohortsyncv1.Run, error) {
	resp, err := s.Syncs.RunSync(ctx, &cohortsyncv1.RunSyncRequest{Name: sync})
	if err != nil {
		return nil, err
	}
	return s.Wait(ctx, resp.GetRun().GetName())
}

// Wait watches a run to its end.
func (s *System) Wait(ctx context.Context, run string) (last *cohortsyncv1.Run, _ error) {
	st, err := s.Runs.WatchRun(ctx, &cohortsyncv1.WatchRunRequest{Name: run})
	if err != nil {
		return nil, err
	}
	for {
		m, err := st.Recv()
		if err != nil {
			if last != nil && (last.GetState() >= cohortsyncv1.Run_STATE_SUCCEEDED) {
				return last, nil
			}
			return last, err
		}
		last = m.GetRun()
	}
}
