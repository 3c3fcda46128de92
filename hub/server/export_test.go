package server

// RenewCertificate has the hub look at its certificate as of a given time.
var RenewCertificate = (*Hub).renewCertificate
