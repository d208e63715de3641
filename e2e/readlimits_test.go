package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// behind are the services behind a gateway: everybody may read, there is nothing to
// be read, and while it is shut every read lasts.
type behind struct {
	registryv1.UnimplementedProjectServiceServer
	cohortsyncv1.UnimplementedCohortServiceServer
	ingestionv1.UnimplementedDataServiceServer
	entered chan struct{}
	shut    chan struct{} // closed when it is open
}

func (b *behind) wait(ctx context.Context) error {
	select {
	case b.entered <- struct{}{}:
	default: // nobody counts
	}
	select {
	case <-b.shut:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *behind) GetProject(_ context.Context, req *registryv1.GetProjectRequest) (*registryv1.GetProjectResponse, error) {
	return &registryv1.GetProjectResponse{Project: &registryv1.Project{Name: req.GetName()}}, nil
}

func (b *behind) ListCohorts(ctx context.Context, _ *cohortsyncv1.ListCohortsRequest) (*cohortsyncv1.ListCohortsResponse, error) {
	return &cohortsyncv1.ListCohortsResponse{}, b.wait(ctx)
}

func (b *behind) ExportEvents(_ *ingestionv1.ExportEventsRequest, st grpc.ServerStreamingServer[ingestionv1.ExportEventsResponse]) error {
	return b.wait(st.Context())
}

func (b *behind) QueryProfiles(_ *ingestionv1.QueryProfilesRequest, st grpc.ServerStreamingServer[ingestionv1.QueryProfilesResponse]) error {
	if err := b.wait(st.Context()); err != nil {
		return err
	}
	return st.Send(&ingestionv1.QueryProfilesResponse{Page: &ingestionv1.ProfilePage{ComputeTime: timestamppb.Now()}})
}

// limited is a gateway of its own with the limits of reads it has by itself, but for
// what the arguments say.
func limited(t *testing.T, args ...string) (*behind, *utils) {
	t.Helper()
	b := &behind{entered: make(chan struct{}, 200), shut: make(chan struct{})}
	srv := grpc.NewServer()
	registryv1.RegisterProjectServiceServer(srv, b)
	cohortsyncv1.RegisterCohortServiceServer(srv, b)
	ingestionv1.RegisterDataServiceServer(srv, b)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }() // until it is stopped
	t.Cleanup(func() { srv.Stop(); <-served })
	addr := l.Addr().String()
	p := harness.Start(t, append([]string{"gateway", "--http-addr", "127.0.0.1:0", "--registry-addr", addr, "--cohortsync-addr", addr, "--ingestion-addr", addr}, args...)...)
	return b, &utils{t, "http://" + p.Ready.HTTPAddr, "reader", "pass", "1"}
}

// read reads and returns the status and, of a refusal, after how many seconds to
// come back.
func (u *utils) read(path string) (status, after int) {
	u.t.Helper()
	status, head, body := u.get(path, url.Values{"from_date": {"2026-11-01"}, "to_date": {"2026-11-02"}}, false)
	if status == http.StatusOK {
		if path == "export" && len(body) != 0 {
			u.t.Errorf("nothing exported is %q", body)
		}
		return status, 0
	}
	var e struct{ Error, Status string }
	after, err := strconv.Atoi(head.Get("Retry-After"))
	if json.Unmarshal(body, &e) != nil || status != http.StatusTooManyRequests || e.Status != "error" || e.Error == "" || err != nil {
		u.t.Errorf("%s: HTTP %d %v %s", path, status, head, body)
	}
	return status, after
}

func TestReadsAreLimitedAsMixpanelsAreUnlessToldOtherwise(t *testing.T) {
	// Of the limits that would be met before the one to be shown, those are switched
	// off that have a part of their own.
	for _, c := range []struct {
		name  string
		args  []string
		paths []string
		most  int
	}{
		{"queries of an hour", nil, []string{"engage", "cohorts/list"}, 60},
		{"exports of an hour", []string{"--export-per-second", "0"}, []string{"export"}, 60},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, u := limited(t, c.args...)
			close(b.shut)
			began := time.Now()
			for i := range c.most {
				if status, _ := u.read(c.paths[i%len(c.paths)]); status != 200 {
					t.Fatalf("read %d: %d", i+1, status)
				}
			}
			// There is room again an hour after the first.
			if status, after := u.read(c.paths[0]); status != 429 || after > 3600 || after < 3600-int(time.Since(began).Seconds())-1 {
				t.Errorf("one more: %d, come back after %d s", status, after)
			}
		})
	}
	for _, c := range []struct {
		name  string
		args  []string
		paths []string
		most  int
	}{
		{"queries at one time", nil, []string{"engage", "cohorts/list"}, 5},
		{"exports at one time", []string{"--export-per-second", "0", "--export-per-hour", "0"}, []string{"export"}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, u := limited(t, c.args...)
			var reads sync.WaitGroup
			for i := range c.most {
				reads.Go(func() {
					if status, _ := u.read(c.paths[i%len(c.paths)]); status != 200 {
						t.Errorf("read %d: %d", i+1, status)
					}
				})
			}
			for range c.most {
				select {
				case <-b.entered:
				case <-time.After(time.Minute):
					t.Fatal("not all that may are let in")
				}
			}
			refused := make(chan struct{})
			reads.Go(func() {
				defer close(refused)
				if status, after := u.read(c.paths[0]); status != 429 || after != 1 {
					t.Errorf("one more: %d, come back after %d s", status, after)
				}
			})
			select {
			case <-refused:
			case <-b.entered:
				t.Error("one more is let in")
			}
			close(b.shut)
			reads.Wait()
			if status, _ := u.read(c.paths[0]); status != 200 {
				t.Errorf("when there is room: %d", status)
			}
		})
	}
	t.Run("exports of a second", func(t *testing.T) {
		b, u := limited(t, "--export-per-hour", "0")
		close(b.shut)
		for range 30 {
			began := time.Now()
			var mu sync.Mutex
			answers := map[int]int{}
			var reads sync.WaitGroup
			for range 6 {
				reads.Go(func() {
					status, after := u.read("export")
					mu.Lock()
					defer mu.Unlock()
					if answers[status]++; status == 429 && after != 1 {
						t.Errorf("come back after %d s", after)
					}
				})
			}
			reads.Wait()
			within := time.Since(began) < time.Second // it depends on the machine whether the six are of one second
			if within && (answers[200] != 3 || answers[429] != 3) {
				t.Fatalf("six exports in a second: %v, want three of 200", answers)
			}
			if answers[200] < 3 {
				t.Fatalf("six exports: %v, fewer than three were let in", answers)
			}
			if within {
				return
			}
			<-time.After(time.Second + 100*time.Millisecond) // none of these is of the next second
		}
		t.Fatal("the machine never answered six exports in a second")
	})
}
