package harness

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// errorAnswers keeps the error answers of all calls.
var errorAnswers = newCapture("error answers")

// Client talks to a standalone as a service account.
type Client struct {
	Creds   Credentials
	Project string // projects/{id}
	HTTP    *http.Client
	Base    string // http(s)://host:port
	conn    *grpc.ClientConn
}

type basicAuth string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b basicAuth) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (basicAuth) RequireTransportSecurity() bool { return false }

// Client connects with the dev credentials.
func (p *Process) Client(t testing.TB) *Client {
	t.Helper()
	return Connect(t, p.Creds)
}

// Connect connects with credentials.
func Connect(t testing.TB, c Credentials) *Client {
	t.Helper()
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte(c.ServiceAccount+":"+c.ServiceSecret))
	conn, err := grpc.NewClient(c.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(basicAuth(auth)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoker(ctx, method, req, reply, cc, opts...)
			if err != nil {
				_, _ = fmt.Fprintln(errorAnswers, method, err) // a buffer
			}
			return err
		}))
	if err != nil {
		t.Fatal(err)
	}
	cl := &Client{Creds: c, Project: "projects/" + c.ProjectID, HTTP: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}, Base: "http://" + c.HTTPAddr, conn: conn}
	t.Cleanup(func() { cl.HTTP.CloseIdleConnections(); _ = conn.Close() })
	return cl
}

// The services over gRPC.

// Cohorts is the CohortService.
func (c *Client) Cohorts() cohortsyncv1.CohortServiceClient {
	return cohortsyncv1.NewCohortServiceClient(c.conn)
}

// Syncs is the SyncService.
func (c *Client) Syncs() cohortsyncv1.SyncServiceClient {
	return cohortsyncv1.NewSyncServiceClient(c.conn)
}

// Runs is the RunService.
func (c *Client) Runs() cohortsyncv1.RunServiceClient {
	return cohortsyncv1.NewRunServiceClient(c.conn)
}

// Data is the DataService.
func (c *Client) Data() ingestionv1.DataServiceClient {
	return ingestionv1.NewDataServiceClient(c.conn)
}

// Ingestion is the IngestionService.
func (c *Client) Ingestion() ingestionv1.IngestionServiceClient {
	return ingestionv1.NewIngestionServiceClient(c.conn)
}

// Usage is the UsageService.
func (c *Client) Usage() ingestionv1.UsageServiceClient {
	return ingestionv1.NewUsageServiceClient(c.conn)
}

// Projects is the ProjectService.
func (c *Client) Projects() registryv1.ProjectServiceClient {
	return registryv1.NewProjectServiceClient(c.conn)
}

// Health is the health service.
func (c *Client) Health() healthv1.HealthClient { return healthv1.NewHealthClient(c.conn) }

// Connectors is the ConnectorService.
func (c *Client) Connectors() registryv1.ConnectorServiceClient {
	return registryv1.NewConnectorServiceClient(c.conn)
}

// Answer is an HTTP answer.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON decodes the body.
func (a *Answer) JSON(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.Body, &m); err != nil {
		t.Fatalf("HTTP %d, no JSON: %v\n%s", a.Status, err, a.Body)
	}
	return m
}

// Do makes an HTTP call to a path with the service account, and keeps an error answer.
func (c *Client) Do(ctx context.Context, method, path string, body []byte, head map[string]string) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(c.Creds.ServiceAccount, c.Creds.ServiceSecret)
	for k, v := range head {
		if v == "" {
			req.Header.Del(k)
			continue
		}
		req.Header.Set(k, v)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		_, _ = fmt.Fprintf(errorAnswers, "%s %s %d %s\n", method, req.URL.Path, resp.StatusCode, b) // a buffer
	}
	return &Answer{resp.StatusCode, resp.Header, b}, nil
}

// MustDo is Do that fails the test when there is no answer.
func (c *Client) MustDo(t testing.TB, method, path string, body []byte, head map[string]string) *Answer {
	t.Helper()
	a, err := c.Do(t.Context(), method, path, body, head)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// REST makes a call with protobuf JSON and fails the test unless it answers 200.
func (c *Client) REST(t testing.TB, method, path string, in, out proto.Message) *Answer {
	t.Helper()
	var body []byte
	if in != nil {
		b, err := protojson.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = b
	}
	a := c.MustDo(t, method, "/v1/"+path, body, map[string]string{"Content-Type": "application/json"})
	if a.Status != http.StatusOK {
		t.Fatalf("%s %s: HTTP %d: %s", method, path, a.Status, a.Body)
	}
	if out != nil {
		if err := protojson.Unmarshal(a.Body, out); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// Sandbox calls the sandbox's own JSON.
func Sandbox(ctx context.Context, addr, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("sandbox %s: HTTP %d: %s", path, resp.StatusCode, strings.TrimSpace(string(b)))
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
