package gateway

import (
	"context"
	"net/http"
	"regexp"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
)

// restError answers with {code, message, details}. A body that is no valid JSON
// of the request never reaches a service, so it is here that it gets the details
// that every other error has.
func restError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	if s := status.Convert(err); s.Code() == codes.InvalidArgument && len(s.Details()) == 0 {
		err = rpc.ToStatus(ctx, malformed(s.Message()))
	}
	runtime.DefaultHTTPErrorHandler(ctx, mux, m, w, r, err)
}

// routingError answers a path or a method that does not exist.
func routingError(ctx context.Context, mux *runtime.ServeMux, m runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	if code != http.StatusMethodNotAllowed {
		runtime.DefaultRoutingErrorHandler(ctx, mux, m, w, r, code)
		return
	}
	restError(ctx, mux, m, w, r, &runtime.HTTPStatusError{HTTPStatus: code, Err: status.Error(codes.Unimplemented, "this path does not know the method "+r.Method)})
}

var (
	// protojson puts a no-break space into its texts now and then, so that nobody
	// compares them.
	noBreak = strings.NewReplacer("\u00a0", " ")
	// fieldName finds the field in "invalid value for string field displayName: 7"
	// and in "unknown field \"x\"".
	fieldName = regexp.MustCompile(`field "?([A-Za-z_.]+)"?`)
	upper     = regexp.MustCompile(`[A-Z]`)
	// badValue is where protojson repeats the value it refused, which may be
	// somebody's data.
	badValue = regexp.MustCompile(`(invalid value for [A-Za-z0-9_.]+ (?:type|field [A-Za-z0-9_.]+)): .*`)
)

// malformed is the fault of a request whose JSON can't be read.
func malformed(text string) *fault.Error {
	text = strings.TrimSpace(strings.TrimPrefix(noBreak.Replace(text), "proto:"))
	text = badValue.ReplaceAllString(text, "$1")
	m := fieldName.FindStringSubmatch(text)
	if m == nil {
		return fault.New(fault.Invalid, "MALFORMED_JSON", "body: %s", text)
	}
	// The contracts, and so our answers, spell names with underscores.
	field := upper.ReplaceAllStringFunc(m[1], func(c string) string { return "_" + strings.ToLower(c) })
	text = strings.ReplaceAll(text, m[1], field)
	return &fault.Error{Code: fault.Invalid, Reason: "MALFORMED_JSON", Public: "body: " + text, Violations: []fault.Violation{{Field: field, Description: text}}}
}
