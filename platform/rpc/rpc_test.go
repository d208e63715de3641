package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ends is a service that does what a test says.
type ends struct {
	registryv1.UnimplementedProjectServiceServer
	do func() error
}

func (e *ends) GetProject(context.Context, *registryv1.GetProjectRequest) (*registryv1.GetProjectResponse, error) {
	return &registryv1.GetProjectResponse{}, e.do()
}

func serve(t *testing.T, e *ends) registryv1.ProjectServiceClient {
	t.Helper()
	in := rpc.NewInProcess()
	if err := in.Guard(&auth.Guard{InternalKey: "k"}); err != nil {
		t.Fatal(err)
	}
	registryv1.RegisterProjectServiceServer(in, e)
	t.Cleanup(func() {
		if err := in.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return registryv1.NewProjectServiceClient(in.Dial(auth.InternalCredentials{Key: "k"}))
}

var valid = &registryv1.GetProjectRequest{Name: "projects/1"}

func TestAFaultArrivesWithItsReasonFieldsAndRetryAndReadsBackAsAFault(t *testing.T) {
	f := fault.Field("a.b", "must be %d", 7).Retry(3*time.Second).With("limit", "7")
	f.Reason = "TOO_SMALL"
	client := serve(t, &ends{do: func() error { return fmt.Errorf("wrapped: %w", f) }})
	_, err := client.GetProject(t.Context(), valid)
	s := status.Convert(err)
	if s.Code() != codes.InvalidArgument || s.Message() != "a.b: must be 7" || len(s.Details()) != 3 {
		t.Fatalf("status %v with %v", s, s.Details())
	}
	back := fault.As(rpc.FromStatus(err))
	if back == nil || back.Code != fault.Invalid || back.Reason != "TOO_SMALL" || back.RetryAfter != 3*time.Second || back.Metadata["limit"] != "7" || len(back.Violations) != 1 || back.Violations[0].Field != "a.b" {
		t.Fatalf("read back as %+v", back)
	}
}

func TestEveryFaultCodeHasItsStatus(t *testing.T) {
	for code := fault.Internal; code <= fault.Cancelled; code++ {
		got := status.Code(rpc.ToStatus(t.Context(), fault.New(code, "R", "text")))
		if got == codes.Unknown || (code != fault.Internal && got == codes.Internal) {
			t.Errorf("%s becomes %s", code, got)
		}
	}
}

func TestPrivateCausesReachTheLogAndNotTheCaller(t *testing.T) {
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	do := errors.New("disk at /private/path is full")
	client := serve(t, &ends{do: func() error { return do }})
	for what, err := range map[string]error{"plain error": do, "internal fault": fault.New(fault.Internal, "X", "public half").Wrap(do)} {
		log.Reset()
		do = err
		_, got := client.GetProject(t.Context(), valid)
		if status.Code(got) != codes.Internal || strings.Contains(got.Error(), "private") {
			t.Errorf("%s: the caller sees %v", what, got)
		}
		if !strings.Contains(log.String(), "/private/path") {
			t.Errorf("%s: the log has not the cause: %s", what, log.String())
		}
		named := false
		for _, d := range status.Convert(got).Details() {
			_, ok := d.(*errdetails.RequestInfo)
			named = named || ok
		}
		if !named {
			t.Errorf("%s: no request id in %v", what, got)
		}
	}
}

func TestAPanicIsAnInternalErrorAndItsValueIsInNoLog(t *testing.T) {
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	client := serve(t, &ends{do: func() error { panic("someone@example.org") }})
	_, err := client.GetProject(t.Context(), valid)
	if status.Code(err) != codes.Internal || strings.Contains(err.Error()+log.String(), "someone@example.org") || !strings.Contains(log.String(), "panic") {
		t.Fatalf("err = %v, log = %s", err, log.String())
	}
}

func TestValidationNamesTheFieldAndRunsAfterAuth(t *testing.T) {
	called := false
	client := serve(t, &ends{do: func() error { called = true; return nil }})
	_, err := client.GetProject(t.Context(), &registryv1.GetProjectRequest{Name: "projects/1/x"})
	back := fault.As(rpc.FromStatus(err))
	if back == nil || back.Code != fault.Invalid || back.Violations[0].Field != "name" || called {
		t.Fatalf("err = %v, handler called: %v", err, called)
	}
	want := []string{"recovery", "telemetry", "errors", "auth", "validation"}
	if got := rpc.ChainOrder; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("chain %v, want %v", got, want)
	}
}
